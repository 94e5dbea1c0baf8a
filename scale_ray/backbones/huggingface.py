"""Models of transformers, `hf:ID_OR_FOLDER`: VideoMAE, TimeSformer, V-JEPA 2, CLIP's vision tower, DINOv2, DINOv3.

`model_type` in the model's config.json determines the family. The model is always loaded without its classifier,
whichever class the checkpoint was saved from; a norm between the pooling and the classifier belongs to the features.
A checkpoint with missing weights is refused, because transformers would replace them with random numbers; weights
that are not used are named.
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
from scale_ray.backbones.weights import read_weights, state_in, unused_notes, weights_hash
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError, first_line

PREFIX = "hf:"


@dataclass(frozen=True)
class Family:
    """How the models of one family are used.

    `any_input_px` means that the position embeddings adapt to the input size. `unused` lists prefixes of weights
    that do not affect the features and may be missing. `normed_class` is the class whose models apply a norm,
    `fc_norm`, to the mean over the tokens (if their configuration says `use_mean_pooling`).
    """

    model_class: str
    pooling: str
    sees_video: bool = False
    any_input_px: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    unused: tuple[str, ...] = ()
    normed_class: str = ""


_CLIP = Family(
    "CLIPVisionModel",
    "pooler",
    any_input_px=True,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
_VJEPA2 = Family("VJEPA2Model", "mean", sees_video=True, unused=("predictor.",))
_MASK_TOKEN = ("embeddings.mask_token",)
FAMILIES = {
    "videomae": Family("VideoMAEModel", "mean", sees_video=True, normed_class="VideoMAEForVideoClassification"),
    "timesformer": Family("TimesformerModel", "class token", sees_video=True, mean=KINETICS_MEAN, std=KINETICS_STD),
    "vjepa2": _VJEPA2,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": Family("Dinov2Model", "pooler", any_input_px=True, unused=_MASK_TOKEN),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "pooler", any_input_px=True, unused=_MASK_TOKEN),
    "dinov3_vit": Family("DINOv3ViTModel", "pooler", any_input_px=True, unused=_MASK_TOKEN),
}


class HuggingFaceTrunk(nn.Module):
    """A model of transformers that returns one vector per input.

    `pooling` selects the vector: `class token` (after the final norm), `pooler` (the model's own pooled output) or
    `mean` over all tokens, followed by `norm` if there is one. `interpolate_positions` adapts the position embeddings
    to the input size.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pooling: str,
        sees_video: bool,
        interpolate_positions: bool = False,
        norm: nn.LayerNorm | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.norm = norm
        self.pooling = pooling
        self.sees_video = sees_video
        self.model_options = {"interpolate_pos_encoding": True} if interpolate_positions else {}

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 3, T, S, S) for a video model, otherwise (batch, 3, S, S), to (batch, D)."""
        # Video models of transformers expect time before channels.
        output = self.model(images.transpose(1, 2) if self.sees_video else images, **self.model_options)
        if self.pooling == "pooler":
            return output.pooler_output
        tokens = output.last_hidden_state
        if self.pooling == "class token":
            return tokens[:, 0]
        mean = tokens.float().mean(1)
        return mean if self.norm is None else self.norm(mean.to(self.norm.weight.dtype))


def load_huggingface(options: BackboneOptions, num_frames: int | None) -> Backbone:
    """Load the model of a hub id or folder, on the CPU.

    Raises
    ------
    UserError
        If transformers is not installed, if the model does not exist or cannot be downloaded, if its family is not
        supported, if weights are missing, or if it does not accept the number of frames or the input size.
    """
    name = options.backbone
    library = transformers_library()
    folder = folder_of(name.removeprefix(PREFIX), with_weights=options.weights == "default")
    family, model_class = _family_of(folder, library, name)
    with _as_user_error(f"expected a config.json for {family.model_class} in {name}"):
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    model_frames = config.num_frames if family.sees_video and hasattr(config, "num_frames") else None
    require_frames(name, model_frames, num_frames)
    model_px = _square_px(getattr(config, "image_size", None) or getattr(config, "crop_size", None), name)
    processing = processing_in(folder)
    input_px = options.input_px or (processing.input_px if family.any_input_px else None) or model_px
    if input_px != model_px and not family.any_input_px:
        raise UserError(f"input_px: {name} expected {model_px} px, found {input_px}")
    if _has_norm(config, family):
        model_class, config.num_labels = getattr(library, family.normed_class), 0  # no classifier
    model, unused = _model_of(model_class, config, folder, options, family)
    trunk = HuggingFaceTrunk(
        _trunk_of(model, family),
        pooling=family.pooling,
        sees_video=family.sees_video,
        interpolate_positions=family is _CLIP,  # at the model's own size they stay as they are
        norm=getattr(model, "fc_norm", None),
    )
    # With the hash, since one name and seed can stand for random models of different shapes.
    random_id = f"random, seed {options.backbone_seed}, {weights_hash(trunk)}" if options.weights == "none" else None
    return Backbone(
        name,
        trunk,
        sees_video=family.sees_video,
        frame_pooling=options.frame_pooling,
        input_px=input_px,
        size_step_px=config.patch_size if family.any_input_px else None,
        num_frames=model_frames,
        mean=options.pixel_mean or processing.mean or family.mean,
        std=options.pixel_std or processing.std or family.std,
        weights_id=random_id,
        precision=options.precision,
        notes=unused_notes(name, unused),
    )


def transformers_library() -> Any:
    """Import `transformers`, an optional extra; it must only be imported through this function.

    Raises
    ------
    UserError
        If it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read only when the library is imported
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings of the library about its own code
            return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            "backbone: expected transformers for hf: and svt, found none; pip install 'scale-ray[hf]'"
        ) from error


def _family_of(folder: Path, library: Any, name: str) -> tuple[Family, Any]:
    """The family of a folder's model, and its class in transformers."""
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
    return family, model_class


def _trunk_of(model: Any, family: Family) -> nn.Module:
    if family is _VJEPA2:
        return model.encoder  # without the predictor of masked tokens
    return model.base_model if hasattr(model, "fc_norm") else model


def _has_norm(config: Any, family: Family) -> bool:
    """Whether the model of a configuration has a norm behind the mean over its tokens.

    By the configuration, since random weights need the same layers as the file's.
    """
    return family.normed_class in (config.architectures or ()) and config.use_mean_pooling


def _model_of(
    model_class: Any, config: Any, folder: Path, options: BackboneOptions, family: Family
) -> tuple[Any, list[str]]:
    """The model without its classifier, in float32, and the names of the weights that are not used."""
    # Always given: otherwise the config could name an implementation whose code transformers would download.
    attention = {"attn_implementation": "sdpa" if model_class._supports_sdpa else "eager"}
    if options.weights == "none":
        with seeded(options.backbone_seed), _quiet_transformers():
            return model_class._from_config(config, dtype=torch.float32, **attention), []
    if options.weights == "default":
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder}
    else:
        state = state_in(read_weights(options.weights), ("state_dict", "model"), options.weights)
        source = {"pretrained_model_name_or_path": None, "state_dict": state}
    expected = f"expected weights of {family.model_class} for {options.backbone}"
    # Seeded, since transformers initialises missing weights at random, unused ones included.
    with seeded(options.backbone_seed), _quiet_transformers(), _as_user_error(expected):
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
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith(family.unused))
    if missing:
        raise UserError(
            f"weights: {expected}, found {len(missing)} of {len(model.state_dict())} tensors missing, "
            f"such as {missing[0]!r}"
        )
    # Not the indices that old files hold beside their weights.
    unused = [key for key in loading["unexpected_keys"] if not key.endswith("position_ids")]
    if family is _VJEPA2:
        predictor = {key for key in model.state_dict() if key.startswith(family.unused)}
        unused += predictor - set(loading["missing_keys"])
    return model, unused


def _square_px(size: Any, name: str) -> int:
    sizes_px = list(size) if isinstance(size, list | tuple) else [size, size]
    if not all(isinstance(size_px, int) for size_px in sizes_px) or len(set(sizes_px)) != 1:
        raise UserError(f"backbone: expected {name} to have a square input, found {size!r}")
    return sizes_px[0]


@contextlib.contextmanager
def _as_user_error(expected: str) -> Iterator[None]:
    """Turn any exception into a UserError of one line."""
    try:
        yield
    except Exception as error:  # third-party files can make the readers raise any exception
        raise UserError(f"weights: {expected}, found: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress the messages of transformers while it loads a model; real problems are raised as errors."""
    logging = importlib.import_module("transformers.utils.logging")
    verbosity, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bar:
            logging.enable_progress_bar()
