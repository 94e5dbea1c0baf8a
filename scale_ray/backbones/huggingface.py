"""Models of transformers, `hf:ID_OR_FOLDER`: VideoMAE, TimeSformer, V-JEPA 2, CLIP's vision tower, DINOv2 and v3.

The family follows from `model_type` in the model's config.json. Whatever class a checkpoint was saved
from, the model without its head is loaded, and one whose weights are not all there is refused:
transformers would fill the gaps with random numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scale_ray.backbones.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    KINETICS_MEAN,
    KINETICS_STD,
    Backbone,
    require_frames,
)
from scale_ray.backbones.huggingface_files import folder_of, json_in, processing_in
from scale_ray.backbones.random_weights import seeded
from scale_ray.backbones.weights import hash_of, read_weights, state_in
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError, first_line

PREFIX = "hf:"


@dataclass(frozen=True)
class Family:
    """How the models of one family are used.

    `unread` are the weights that features do not depend on; `any_px` says that the position embeddings
    follow the size of the input.
    """

    model_class: str
    pooling: str
    sees_video: bool = False
    any_px: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    unread: tuple[str, ...] = ()


_CLIP = Family(
    "CLIPVisionModel",
    "pooler",
    any_px=True,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
_MASK_TOKEN = ("embeddings.mask_token",)
FAMILIES = {
    "videomae": Family("VideoMAEModel", "mean", sees_video=True),
    "timesformer": Family("TimesformerModel", "class token", sees_video=True, mean=KINETICS_MEAN, std=KINETICS_STD),
    "vjepa2": Family("VJEPA2Model", "mean", sees_video=True, unread=("predictor.",)),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": Family("Dinov2Model", "pooler", any_px=True, unread=_MASK_TOKEN),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "pooler", any_px=True, unread=_MASK_TOKEN),
    "dinov3_vit": Family("DINOv3ViTModel", "pooler", any_px=True, unread=_MASK_TOKEN),
}


class HuggingFaceTrunk(nn.Module):
    """A model of transformers, and what is taken of its output.

    `pooling`: `class token` (after the final norm), `pooler` (what the model itself makes of its class
    token) or `mean` over all tokens.
    """

    def __init__(self, model: nn.Module, *, pooling: str, sees_video: bool, interpolates: bool = False) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.sees_video = sees_video
        self.extra = {"interpolate_pos_encoding": True} if interpolates else {}

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, T, S, S) for a video model, else (batch, 3, S, S), to (batch, D)."""
        # Here time comes before the channels.
        output = self.model(images.transpose(1, 2) if self.sees_video else images, **self.extra)
        if self.pooling == "pooler":
            return output.pooler_output
        tokens = output.last_hidden_state
        return tokens[:, 0] if self.pooling == "class token" else tokens.float().mean(1)


def load_huggingface(options: BackboneOptions, num_frames: int | None) -> Backbone:
    """The model of a hub id or folder, on the CPU.

    Raises
    ------
    UserError
        Where transformers is missing, the model is not there or cannot be reached, is of another family,
        lacks weights, or takes other frames or pixels.
    """
    library = transformers_library()
    name = options.backbone
    folder = folder_of(name.removeprefix(PREFIX), with_weights=options.weights == "default")
    model_type = json_in(folder, "config.json").get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise UserError(f"backbone: expected a model of one of {', '.join(FAMILIES)}, found {model_type!r} in {name}")
    model_class = getattr(library, family.model_class, None)
    if model_class is None:
        raise UserError(
            f"backbone: expected transformers with {family.model_class}, found {library.__version__}; "
            "pip install --upgrade transformers"
        )
    with _one_line_for(f"expected a config.json that {family.model_class} takes in {name}"):
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    own_frames = config.num_frames if family.sees_video and hasattr(config, "num_frames") else None
    require_frames(name, own_frames, num_frames)
    own_px = _square(getattr(config, "image_size", None) or getattr(config, "crop_size", None), name)
    processing = processing_in(folder)
    input_px = options.input_px or (processing.input_px if family.any_px else None) or own_px
    if input_px != own_px and not family.any_px:
        raise UserError(f"input_px: {name} expected {own_px} px, found {input_px}")
    model = _model_of(model_class, config, folder, options, family)
    # V-JEPA 2 predicts masked tokens on top of the encoder; the features are the encoder's.
    trunk = HuggingFaceTrunk(
        model.encoder if model_type == "vjepa2" else model,
        pooling=family.pooling,
        sees_video=family.sees_video,
        interpolates=family is _CLIP and input_px != own_px,
    )
    # The seed alone would not tell two random models of different shapes under one name apart.
    random_id = f"random, seed {options.backbone_seed}, {hash_of(trunk)}" if options.weights == "none" else None
    return Backbone(
        name,
        trunk,
        sees_video=family.sees_video,
        frame_pooling=options.frame_pooling,
        input_px=input_px,
        num_frames=own_frames,
        mean=options.pixel_mean or processing.mean or family.mean,
        std=options.pixel_std or processing.std or family.std,
        weights_id=random_id,
        precision=options.precision,
    )


def transformers_library() -> Any:
    """The module `transformers`; nothing else imports it, since it is an optional extra.

    Raises
    ------
    UserError
        Where it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when the library is imported
    try:
        with warnings.catch_warnings(action="ignore"):  # of the library, about its own parts
            return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            "backbone: expected transformers for hf: and svt, found none; pip install 'scale-ray[hf]'"
        ) from error


def _model_of(model_class: Any, config: Any, folder: Path, options: BackboneOptions, family: Family) -> Any:
    """The model without a head, in float32."""
    attention = {"attn_implementation": "sdpa"} if model_class._supports_sdpa else {}
    if options.weights == "none":
        with seeded(options.backbone_seed), _silence():
            return model_class._from_config(config, dtype=torch.float32, **attention)
    if options.weights == "default":
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder}
    else:
        state = state_in(read_weights(options.weights), ("state_dict", "model"), options.weights)
        source = {"pretrained_model_name_or_path": None, "state_dict": state}
    expected = f"expected weights of {family.model_class} for {options.backbone}"
    # Parts that the file has no weights for start at random, also where that does not matter.
    with seeded(options.backbone_seed), _silence(), _one_line_for(expected):
        model, loading = model_class.from_pretrained(
            **source,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            **attention,
        )
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith(family.unread))
    if missing:
        raise UserError(
            f"weights: {expected}, found {len(missing)} of {len(model.state_dict())} tensors missing, "
            f"such as {missing[0]!r}"
        )
    return model


def _square(size: Any, name: str) -> int:
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if not all(isinstance(side, int) for side in sides) or len(set(sides)) != 1:
        raise UserError(f"backbone: expected a square input of {name}, found {size!r}")
    return sides[0]


@contextlib.contextmanager
def _one_line_for(expected: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # files of a stranger: the readers raise whatever they lead to
        raise UserError(f"weights: {expected}, found: {first_line(error)}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing of what transformers says while it loads: what matters we raise ourselves."""
    logging = importlib.import_module("transformers.utils.logging")
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
