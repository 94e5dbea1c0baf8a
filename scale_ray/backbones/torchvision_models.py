"""Video and image models of torchvision, without their classification layers.

torchvision is imported when it is first used: it brings torch's compiler, 1.7 s, which other backbones do without.
"""

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

from scale_ray.backbones.backbone import Backbone, require_frames
from scale_ray.backbones.random_weights import seeded, settle_batch_norms
from scale_ray.backbones.weights import load_strictly, read_weights, state_in, weights_hash
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError, first_line
from scale_ray.files.failures import is_lasting, one_line

# Families whose output is one pooled vector once the classification layer is removed.
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
# Families with learned position embeddings or relative positions for one size; the others take any size.
_ONE_SIZE_FAMILIES = ("mvit", "vit")


@dataclass(frozen=True)
class Published:
    """The properties that torchvision publishes for a model and its default weights.

    `multiply_adds` is in units of 10^9, per clip of 16 frames for a video model, otherwise per image.
    """

    weights: Any
    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiply_adds: float


def torchvision_names() -> list[str]:
    """Names of all torchvision models that can serve as a backbone, video models first."""
    from torchvision import models

    video = [name for name in models.list_models(module=models.video) if name.startswith(_VIDEO_FAMILIES)]
    image = [name for name in models.list_models(module=models) if name.startswith(_IMAGE_FAMILIES)]
    return video + image


def sees_video(name: str) -> bool:
    """Whether a torchvision model takes a whole clip; the others take single frames."""
    return name.startswith(_VIDEO_FAMILIES)


def fixed_frames(name: str) -> int | None:
    """The number of frames that a torchvision model takes; None for any number."""
    return _MVIT_FRAMES if name.startswith("mvit") else None


def published(name: str) -> Published:
    """The properties that torchvision publishes for a model."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    return Published(weights, preset.crop_size[0], tuple(preset.mean), tuple(preset.std), weights.meta["_ops"])


def load_torchvision(options: BackboneOptions, num_frames: int | None) -> Backbone:
    """Load a torchvision model on the CPU, without its classification layer.

    Raises
    ------
    UserError
        If the name is unknown, if the weights cannot be loaded or do not fit, or if the model does not accept
        the number of frames or the input size.
    """
    name = options.backbone
    _require_known(name)
    takes_clips, defaults = sees_video(name), published(name)
    require_frames(name, fixed_frames(name), num_frames)
    frames = fixed_frames(name) or num_frames or 16
    input_px = options.input_px or defaults.input_px
    # A random model is built for the requested size; pretrained position embeddings fix the size of a trained one.
    model_px = input_px if options.weights == "none" else defaults.input_px
    size_step_px = None if name.startswith(_ONE_SIZE_FAMILIES) else 1
    for size_px in {input_px, (size_step_px and options.eval_input_px) or input_px}:
        _require_fit(name, frames if takes_clips else 1, size_px, model_px)
    if options.weights == "none":
        with seeded(options.backbone_seed):
            model = _model(name, model_px)
            settle_batch_norms(model, sees_video=takes_clips, num_frames=frames, input_px=input_px)
        weights_id = f"random, seed {options.backbone_seed}"
    else:
        model = _trained_model(name, model_px, options.weights, defaults)
        weights_id = weights_hash(model)
    return Backbone(
        name,
        _without_classifier(model, name)[0],
        sees_video=takes_clips,
        frame_pooling=options.frame_pooling,
        input_px=input_px,
        size_step_px=size_step_px,
        num_frames=fixed_frames(name),
        mean=options.pixel_mean or defaults.mean,
        std=options.pixel_std or defaults.std,
        weights_id=weights_id,
        precision=options.precision,
    )


def shape_of(name: str, model_px: int) -> tuple[nn.Module, int]:
    """A model's trunk on the meta device (shapes without values), built for inputs of `model_px`; its feature width."""
    with torch.random.fork_rng(devices=[]):
        return _without_classifier(_on_meta_device(lambda: _model(name, model_px)), name)


def _require_known(name: str) -> None:
    names = torchvision_names()
    if name not in names:
        similar = difflib.get_close_matches(name, [*names, "slow_r50", "svt", "i3d"], n=3) or [
            "r3d_18",
            "mobilenet_v3_small",
        ]
        raise UserError(
            f"backbone: expected a name from `scale-ray backbones`, such as {', '.join(similar)}, found {name!r}"
        )


def _model(name: str, model_px: int) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None, **({"image_size": model_px} if name.startswith("vit") else {})).eval()


def _trained_model(name: str, model_px: int, weights: str, defaults: Published) -> nn.Module:
    model = _model(name, model_px)
    if weights == "default":
        state = _published_state(name, defaults.weights)
    else:
        state = state_in(read_weights(weights), ("state_dict", "model"), weights)
    load_strictly(model, state, name, weights)
    return model


def _on_meta_device(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module on the meta device, which takes milliseconds for any size.

    `torch.device("meta")` is not used, since some models (regnet) compute their layer widths with tensors.
    """

    class AllocateOnMeta(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if getattr(function, "__module__", None) == "torch.nn.init":
                return kwargs["tensor"] if "tensor" in kwargs else args[0]
            if function in (torch.empty, torch.zeros, torch.ones):
                kwargs["device"] = "meta"
            return function(*args, **kwargs)

    with AllocateOnMeta():
        module = build()
    return module.to("meta")


@functools.lru_cache
def _require_fit(name: str, num_frames: int, input_px: int, model_px: int) -> None:
    """Refuse input sizes and numbers of frames on which the model would fail, by a pass on the meta device."""
    trunk, width = shape_of(name, model_px)
    frames = (num_frames,) if sees_video(name) else ()
    try:
        with torch.inference_mode():
            features = trunk(torch.zeros((1, 3, *frames, input_px, input_px), device="meta"))
        fits, reason = features.shape == (1, width), f"features of shape {tuple(features.shape)}"
    except (RuntimeError, ValueError, AssertionError) as error:
        fits, reason = False, first_line(error)
    if not fits:
        raise UserError(
            f"input_px, frames: expected a size that backbone {name} accepts, "
            f"found {input_px} px and {num_frames} frames ({reason})"
        )


def _without_classifier(model: Any, name: str) -> tuple[nn.Module, int]:
    """The model without its classification layer, and the width of its pooled features."""
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
        attribute = next(name for name in ("fc", "heads", "head", "classifier") if hasattr(model, name))
        classifier = getattr(model, attribute)
        first_layer = next(layer for layer in classifier.modules() if isinstance(layer, nn.Linear | nn.Conv3d))
        width = first_layer.in_features if isinstance(first_layer, nn.Linear) else first_layer.in_channels
        setattr(model, attribute, nn.Identity())
    return model, width


def _published_state(name: str, weights: Any) -> dict[str, Tensor]:
    try:
        # torchvision prints to standard output, which is reserved for the command's result.
        with contextlib.redirect_stdout(io.StringIO()):
            return weights.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError) as error:
        if is_lasting(error):  # of the folder for downloads, not of the connection
            raise one_line(error, torch.hub.get_dir()) from error
        raise UserError(
            f"weights: expected to download the weights of {name}, but {weights.url.split('/')[2]} cannot be reached "
            f"({getattr(error, 'reason', error)}); give --weights FILE, or --weights none for random weights"
        ) from error
