"""Size and speed of backbones, as listed by `scale-ray backbones`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from scale_ray.backbones.backbone import Backbone
from scale_ray.backbones.loading import load_backbone
from scale_ray.backbones.torchvision_models import fixed_frames, published, sees_video, shape_of, torchvision_names
from scale_ray.config import BackboneOptions

_CLIP_FRAMES = 16
_NUM_TIMED_CLIPS = 3


@dataclass(frozen=True)
class BackboneFacts:
    """Size and speed of one backbone, for clips of 16 frames.

    `frames` is the number of frames that the backbone takes, None for any number. `gflop_per_clip` counts a
    multiplication and its addition as one operation, as torchvision does. `seconds_per_clip` is measured on
    request: the fastest of 3 clips, encoded one at a time, on the GPU if there is one.
    """

    name: str
    sees_video: bool
    feature_width: int
    input_px: int
    frames: int | None
    parameters_millions: float
    gflop_per_clip: float
    seconds_per_clip: float | None = None


def torchvision_facts() -> list[BackboneFacts]:
    """Size of every torchvision model, in about 15 s: from shapes and torchvision's published GFLOP alone."""
    return [_published_facts(name) for name in torchvision_names()]


def backbone_facts(options: BackboneOptions, *, measure: bool = False) -> BackboneFacts:
    """Size of any backbone and, if `measure`, its speed; weights are random, since only shapes matter.

    Raises
    ------
    UserError
        If the backbone cannot be loaded.
    """
    is_default_shape = options.input_px is None and options.frame_pooling == "mean"
    if options.backbone in torchvision_names() and is_default_shape and not measure:
        return _published_facts(options.backbone)
    random_options = replace(options, weights="none")
    backbone = load_backbone(random_options, None)
    num_frames = max(_CLIP_FRAMES, backbone.num_frames or 0)
    seconds = _seconds_per_clip(backbone, num_frames) if measure else None
    try:
        width, multiply_adds = _width_and_multiply_adds(backbone.to("meta"), num_frames)
    except (RuntimeError, NotImplementedError, ValueError):  # a user's own model may not run on the meta device
        width, multiply_adds = _width_and_multiply_adds(load_backbone(random_options, None), num_frames)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return BackboneFacts(
        options.backbone,
        backbone.sees_video,
        width,
        backbone.input_px,
        backbone.num_frames,
        parameters / 1e6,
        multiply_adds,
        seconds,
    )


def _published_facts(name: str) -> BackboneFacts:
    defaults = published(name)
    trunk, width = shape_of(name, defaults.input_px)
    parameters = sum(parameter.numel() for parameter in trunk.parameters())
    multiply_adds = defaults.multiply_adds * (1 if sees_video(name) else _CLIP_FRAMES)
    return BackboneFacts(
        name, sees_video(name), width, defaults.input_px, fixed_frames(name), parameters / 1e6, multiply_adds
    )


def _width_and_multiply_adds(backbone: Backbone, num_frames: int) -> tuple[int, float]:
    """Feature width, and multiply-adds per clip in units of 10^9."""
    counter = FlopCounterMode(display=False)
    with counter:
        features = backbone(backbone.black_clips(1, num_frames))
    return features.shape[1], counter.get_total_flops() / 2e9


def _seconds_per_clip(backbone: Backbone, num_frames: int) -> float:
    if torch.cuda.is_available():
        backbone.to("cuda")
    clip = backbone.black_clips(1, num_frames)
    durations_s = []
    for _ in range(1 + _NUM_TIMED_CLIPS):
        started_s = time.perf_counter()
        backbone(clip).cpu()  # waits for the GPU
        durations_s.append(time.perf_counter() - started_s)
    return min(durations_s[1:])  # without the warm-up
