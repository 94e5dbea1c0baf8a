"""Video and image models of torchvision, each cut off before its classification layer."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from scale_ray.backbones.backbone import Backbone, require_frames
from scale_ray.backbones.random_weights import seeded, settle_batch_norms
from scale_ray.backbones.weights import hash_of, load_strictly, read_weights, state_in
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError, first_line

# Families whose output with the classification layer taken off is one pooled vector.
_VIDEO_FAMILIES = ("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")
_IMAGE_FAMILIES = (
    "alexnet",
    "convnext",
    "densenet",
    "efficientnet",
    "mnasnet",
    "mobilenet",
    "regnet",
    "resnet",
    "resnext",
    "shufflenet",
    "squeezenet",
    "swin",
    "vgg",
    "vit",
    "wide_resnet",
)
_MVIT_FRAMES = 16


@dataclass(frozen=True)
class Published:
    """What torchvision says of a model and its default weights.

    `multiply_adds` are 10^9 of a clip of 16 frames for a video model, of one image otherwise.
    """

    weights: Any
    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiply_adds: float


def torchvision_names() -> list[str]:
    """Every model of torchvision that is a backbone: video models first."""
    video = [name for name in models.list_models(module=models.video) if name.startswith(_VIDEO_FAMILIES)]
    image = [name for name in models.list_models(module=models) if name.startswith(_IMAGE_FAMILIES)]
    return video + image


def sees_video(name: str) -> bool:
    """Whether a model of torchvision sees a clip at once; the others see it frame by frame."""
    return name.startswith(_VIDEO_FAMILIES)


def fixed_frames(name: str) -> int | None:
    """The number of frames that a model of torchvision takes; None for any."""
    return _MVIT_FRAMES if name.startswith("mvit") else None


def published(name: str) -> Published:
    """What torchvision says of a model."""
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    return Published(weights, preset.crop_size[0], tuple(preset.mean), tuple(preset.std), weights.meta["_ops"])


def load_torchvision(options: BackboneOptions, num_frames: int | None) -> Backbone:
    """A model of torchvision, on the CPU.

    Raises
    ------
    UserError
        For an unknown name, weights that cannot be had or do not fit, or frames or pixels that the model
        cannot take.
    """
    name = options.backbone
    names = torchvision_names()
    if name not in names:
        near = difflib.get_close_matches(name, [*names, "slow_r50", "svt"], n=3) or ["r3d_18", "mobilenet_v3_small"]
        raise UserError(
            f"backbone: expected a name from `scale-ray backbones`, such as {', '.join(near)}, found {name!r}"
        )
    takes_clips, known = sees_video(name), published(name)
    require_frames(name, fixed_frames(name), num_frames)
    frames = fixed_frames(name) or num_frames or 16
    input_px = options.input_px or known.input_px
    # A random model is of the size that is asked for; a trained one has position embeddings of its own.
    size_px = input_px if options.weights == "none" else known.input_px
    _require_fit(name, frames if takes_clips else 1, input_px, size_px)
    if options.weights == "none":
        with seeded(options.backbone_seed):
            model = _model(name, size_px)
            settle_batch_norms(model, sees_video=takes_clips, num_frames=frames, input_px=input_px)
        weights_id = f"random, seed {options.backbone_seed}"
    else:
        model = _model(name, size_px)
        if options.weights == "default":
            state = _published_state(name, known.weights)
        else:
            state = state_in(read_weights(options.weights), ("state_dict", "model"), options.weights)
        load_strictly(model, state, name, options.weights)
        weights_id = hash_of(model)
    return Backbone(
        name,
        _without_classifier(model, name)[0],
        sees_video=takes_clips,
        frame_pooling=options.frame_pooling,
        input_px=input_px,
        num_frames=fixed_frames(name),
        mean=options.pixel_mean or known.mean,
        std=options.pixel_std or known.std,
        weights_id=weights_id,
        precision=options.precision,
    )


def shape_of(name: str, size_px: int) -> tuple[nn.Module, int]:
    """A model's trunk without any numbers in it, on the meta device, and its feature width."""
    with torch.random.fork_rng(devices=[]):
        return _without_classifier(_without_numbers(lambda: _model(name, size_px)), name)


def _model(name: str, size_px: int) -> nn.Module:
    return models.get_model(name, weights=None, **({"image_size": size_px} if name.startswith("vit") else {})).eval()


def _without_numbers(build: Callable[[], nn.Module]) -> nn.Module:
    """A module on the meta device: milliseconds, whatever its size.

    Not `torch.device("meta")`, under which some models (regnet) cannot work out their own widths.
    """

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if getattr(function, "__module__", None) == "torch.nn.init":
                return kwargs["tensor"] if "tensor" in kwargs else args[0]
            if function in (torch.empty, torch.zeros, torch.ones):
                kwargs["device"] = "meta"
            return function(*args, **kwargs)

    with EmptyOnMeta():
        module = build()
    return module.to("meta")


@functools.lru_cache
def _require_fit(name: str, num_frames: int, input_px: int, size_px: int) -> None:
    """Refuse pixels and frames that the model would fail on later, by passing shapes through it."""
    trunk, width = shape_of(name, size_px)
    frames = (num_frames,) if sees_video(name) else ()
    try:
        with torch.inference_mode():
            features = trunk(torch.zeros((1, 3, *frames, input_px, input_px), device="meta"))
        fits, reason = features.shape == (1, width), f"features of shape {tuple(features.shape)}"
    except (RuntimeError, ValueError, AssertionError) as error:
        fits, reason = False, first_line(error)
    if not fits:
        raise UserError(
            f"input_px, frames: expected a size that backbone {name} takes, "
            f"found {input_px} px and {num_frames} frames ({reason})"
        )


def _without_classifier(model: Any, name: str) -> tuple[nn.Module, int]:
    """The model up to its pooled features, and their width."""
    if name.startswith("squeezenet"):
        width = model.classifier[1].in_channels
        model.classifier = nn.AdaptiveAvgPool2d(1)
    elif name.startswith(("alexnet", "vgg")):
        width = [layer for layer in model.features if isinstance(layer, nn.Conv2d)][-1].out_channels
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Identity()
    elif name.startswith("convnext"):
        width = model.classifier[-1].in_features
        model.classifier[-1] = nn.Identity()
    else:
        layer = next(layer for layer in ("fc", "heads", "head", "classifier") if hasattr(model, layer))
        old = getattr(model, layer)
        first = next(part for part in old.modules() if isinstance(part, nn.Linear | nn.Conv3d))
        width = first.in_features if isinstance(first, nn.Linear) else first.in_channels
        setattr(model, layer, nn.Identity())
    return model, width


def _published_state(name: str, weights: Any) -> dict[str, Tensor]:
    try:
        # It tells of the attempt on standard output, where our results go.
        with contextlib.redirect_stdout(io.StringIO()):
            return weights.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"weights: expected to download those of {name}, but {weights.url.split('/')[2]} cannot be reached "
            f"({getattr(error, 'reason', error)}); give --weights FILE, or --weights none for random ones"
        ) from error
