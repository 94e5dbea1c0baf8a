"""What a backbone costs: for `scale-ray backbones`, and for anyone who has to choose one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from scale_ray.backbones.backbone import Backbone
from scale_ray.backbones.loading import load_backbone
from scale_ray.backbones.torchvision_models import fixed_frames, published, sees_video, shape_of, torchvision_names
from scale_ray.config import BackboneOptions

CLIP_FRAMES = 16
_MEASURED_CLIPS = 3


@dataclass(frozen=True)
class BackboneFacts:
    """One backbone's figures, for clips of 16 frames.

    `gflop_per_clip` counts a multiplication with its addition as one, as torchvision's own figures do.
    `frames` is None for any number. `seconds_per_clip` is measured on
    request: the fastest of 3 clips, one at a time, on the GPU if there is one.
    """

    name: str
    sees_video: bool
    feature_width: int
    input_px: int
    frames: int | None
    parameters_millions: float
    gflop_per_clip: float
    seconds_per_clip: float | None = None


def facts_of_torchvision() -> list[BackboneFacts]:
    """Every model of torchvision, in about 15 s: nothing is computed, and torchvision's own counts are taken."""
    return [_published_facts(name) for name in torchvision_names()]


def facts_of(options: BackboneOptions, *, measure: bool = False) -> BackboneFacts:
    """The figures of any backbone, with random weights: they depend on its shape alone.

    Raises
    ------
    UserError
        Where the backbone cannot be loaded.
    """
    plain = options.input_px is None and options.frame_pooling == "mean"
    if options.backbone in torchvision_names() and plain and not measure:
        return _published_facts(options.backbone)
    shape_only = replace(options, weights="none")
    backbone = load_backbone(shape_only, None)
    frames = max(CLIP_FRAMES, backbone.num_frames or 0)
    seconds = _seconds_per_clip(backbone, frames) if measure else None
    try:
        width, multiply_adds = _passed_through(backbone.to("meta"), frames)
    except (RuntimeError, NotImplementedError, ValueError):  # a user's own model may need real numbers on its way
        width, multiply_adds = _passed_through(load_backbone(shape_only, None), frames)
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
    known = published(name)
    trunk, width = shape_of(name, known.input_px)
    parameters = sum(parameter.numel() for parameter in trunk.parameters())
    multiply_adds = known.multiply_adds * (1 if sees_video(name) else CLIP_FRAMES)
    return BackboneFacts(
        name, sees_video(name), width, known.input_px, fixed_frames(name), parameters / 1e6, multiply_adds
    )


def _passed_through(backbone: Backbone, num_frames: int) -> tuple[int, float]:
    """Feature width, and 10^9 multiply-adds, of one clip."""
    counter = FlopCounterMode(display=False)
    with counter:
        features = backbone(backbone.black_clips(1, num_frames))
    return features.shape[1], counter.get_total_flops() / 2e9


def _seconds_per_clip(backbone: Backbone, num_frames: int) -> float:
    if torch.cuda.is_available():
        backbone.to("cuda")
    clip = backbone.black_clips(1, num_frames)
    durations_s = []
    for _ in range(1 + _MEASURED_CLIPS):
        started_s = time.perf_counter()
        backbone(clip).cpu()  # waits for the GPU
        durations_s.append(time.perf_counter() - started_s)
    return min(durations_s[1:])
