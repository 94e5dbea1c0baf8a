"""Frozen encoders by name: one feature vector a clip (section 2 of the method).

Video models of torchvision see a clip whole; image models see it frame by frame, and their frame
features are pooled over the clip. Each is cut off before its classification layer.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import pickle
import urllib.error
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
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


class Backbone(nn.Module):
    """A frozen encoder of clips.

    Parameters
    ----------
    trunk
        Maps float (batch, 3, T, S, S) to (batch, D) if `sees_video`, else (batch, 3, S, S) to (batch, D').
    frame_pooling
        For image models: `mean` over the frames, or `moments`: mean, standard deviation and mean absolute
        difference of neighbouring frames, D = 3 D'.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        trunk: nn.Module,
        *,
        sees_video: bool,
        frame_pooling: str,
        input_px: int,
        num_frames: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        weights_id: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.sees_video = sees_video
        self.frame_pooling = "none" if sees_video else frame_pooling
        self.input_px = input_px
        self.num_frames = num_frames
        self.weights_id = weights_id
        self.register_buffer("mean", _per_channel(mean))
        self.register_buffer("std", _per_channel(std))
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features of clips: uint8 (clips, T, S, S, 3) to float32 (clips, D)."""
        clips, frames, height, width, _ = pixels.shape
        # Channels come last in the decoder's frames, and stay last in memory: the permuted view is what
        # convolutions call channels_last.
        images = (pixels.float() / 255 - self.mean) / self.std
        if self.sees_video:
            return self.trunk(images.permute(0, 4, 1, 2, 3)).float()
        features = self.trunk(images.view(clips * frames, height, width, 3).permute(0, 3, 1, 2)).float()
        return _pool_frames(features.view(clips, frames, -1), self.frame_pooling)

    def feature_width(self, num_frames: int) -> int:
        """D, found by looking at a black clip."""
        black = torch.zeros(1, num_frames, self.input_px, self.input_px, 3, dtype=torch.uint8)
        return self(black).shape[1]

    def identity(self) -> dict[str, Any]:
        """What decides the features: part of a store's fingerprint."""
        return {
            "backbone": self.name,
            "weights": self.weights_id,
            "frame_pooling": self.frame_pooling,
            "input_px": self.input_px,
            "pixel_mean": [round(value, 6) for value in self.mean.flatten().tolist()],
            "pixel_std": [round(value, 6) for value in self.std.flatten().tolist()],
        }


def backbone_names() -> list[str]:
    """Every name that `load_backbone` takes."""
    video = [name for name in models.list_models(module=models.video) if name.startswith(_VIDEO_FAMILIES)]
    image = [name for name in models.list_models(module=models) if name.startswith(_IMAGE_FAMILIES)]
    return video + image


def sees_video(name: str) -> bool:
    """Whether a backbone sees a clip at once; the others see it frame by frame."""
    return name.startswith(_VIDEO_FAMILIES)


def load_backbone(options: BackboneOptions, num_frames: int) -> Backbone:
    """The backbone that the options name, on the CPU.

    Raises
    ------
    UserError
        For an unknown name, weights that cannot be had or do not fit, or a number of frames that the
        model cannot take.
    """
    name = options.backbone
    names = backbone_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or ["r3d_18", "mobilenet_v3_small"]
        raise UserError(
            f"backbone: expected a name from `scale-ray backbones`, such as {', '.join(near)}, found {name!r}"
        )
    takes_clips = sees_video(name)
    published = models.get_model_weights(name).DEFAULT
    preset = published.transforms()
    crop = preset.crop_size[0]
    fixed_frames = 16 if name.startswith("mvit") else None
    if fixed_frames is not None and num_frames != fixed_frames:
        raise UserError(f"frames: backbone {name} expected {fixed_frames} frames a clip, found {num_frames}")
    if options.weights == "none":
        # Seeded on the side: building a model must not disturb anyone's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.backbone_seed)
            model = models.get_model(name, weights=None)
            input_px = options.input_px or crop
            _settle_batch_norms(model, takes_clips, num_frames, input_px)
        weights_id = f"random, seed {options.backbone_seed}"
    else:
        model = models.get_model(name, weights=None)
        state = _published_state(name, published) if options.weights == "default" else _file_state(options.weights)
        _load_strictly(model, state, name, options.weights)
        weights_id = _hash_of(model)
    return Backbone(
        name,
        _without_classifier(model, name),
        sees_video=takes_clips,
        frame_pooling=options.frame_pooling,
        input_px=options.input_px or crop,
        num_frames=fixed_frames,
        mean=options.pixel_mean or tuple(preset.mean),
        std=options.pixel_std or tuple(preset.std),
        weights_id=weights_id,
    )


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values if len(values) == 3 else values * 3, dtype=torch.float32)


def _pool_frames(features_CTD: Tensor, pooling: str) -> Tensor:
    mean = features_CTD.mean(1)
    if pooling == "mean":
        return mean
    if features_CTD.shape[1] == 1:
        return torch.cat([mean, torch.zeros_like(mean), torch.zeros_like(mean)], 1)
    spread = features_CTD.std(1, correction=0)
    change = features_CTD.diff(dim=1).abs().mean(1)
    return torch.cat([mean, spread, change], 1)


def _without_classifier(model: nn.Module, name: str) -> nn.Module:
    """The model up to its pooled features."""
    if name.startswith("squeezenet"):
        model.classifier = nn.AdaptiveAvgPool2d(1)
    elif name.startswith(("alexnet", "vgg")):
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Identity()
    elif name.startswith("convnext"):
        assert isinstance(model.classifier, nn.Sequential)
        model.classifier[-1] = nn.Identity()
    else:
        layer = next(layer for layer in ("fc", "heads", "head", "classifier") if hasattr(model, layer))
        setattr(model, layer, nn.Identity())
    return model


def _settle_batch_norms(model: nn.Module, sees_video: bool, num_frames: int, input_px: int) -> None:
    """Give a random model's batch norms the statistics of smooth noise.

    Untouched, they pass everything through, and the features of deep narrow models vanish (1e-9 for
    mobilenet_v3_small), below what float16 can hold.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    frames = (num_frames,) if sees_video else ()
    coarse = torch.randn(8, 3, *(1 for _ in frames), 7, 7)
    noise = nn.functional.interpolate(coarse, size=(*frames, input_px, input_px))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average, so that one pass replaces what was there
    model.train()
    with torch.no_grad():
        model(noise)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _published_state(name: str, published: Any) -> dict[str, Tensor]:
    try:
        # It tells of the attempt on standard output, where our results go.
        with contextlib.redirect_stdout(io.StringIO()):
            return published.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"weights: expected to download those of {name}, but {published.url.split('/')[2]} cannot be reached "
            f"({getattr(error, 'reason', error)}); give --weights FILE, or --weights none for random ones"
        ) from error


def _file_state(weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"weights: expected default, none or a file, found no file {weights!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols, in files that are then refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"weights: expected a file of tensors alone, found in {weights!r}: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise UserError(f"weights: expected a dictionary of tensors in {weights!r}, found {type(state).__name__}")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _load_strictly(model: nn.Module, state: dict[str, Tensor], name: str, weights: str) -> None:
    own = model.state_dict()
    # Old files lack the counters of batch norm, which an evaluation never reads.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    strange = [key for key in state if key not in own]
    unequal = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or strange or unequal:
        example = (missing + strange + unequal)[0]
        raise UserError(
            f"weights: {weights!r} does not fit {name}: expected {len(own)} tensors, found {len(missing)} missing, "
            f"{len(strange)} unknown and {len(unequal)} of another shape, such as {example!r}"
        )
    model.load_state_dict(state, strict=False)


def _hash_of(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return "sha256:" + digest.hexdigest()[:16]
