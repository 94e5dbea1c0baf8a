"""A name and its options -> a backbone."""

from __future__ import annotations

from scale_ray.backbones.backbone import Backbone
from scale_ray.backbones.custom import load_custom
from scale_ray.backbones.huggingface import PREFIX, load_huggingface
from scale_ray.backbones.slow_r50 import NAME as SLOW
from scale_ray.backbones.slow_r50 import load_slow
from scale_ray.backbones.svt import NAME as SVT
from scale_ray.backbones.svt import load_svt
from scale_ray.backbones.torchvision_models import load_torchvision
from scale_ray.config import BackboneOptions


def load_backbone(options: BackboneOptions, num_frames: int | None) -> Backbone:
    """The backbone that the options name, on the CPU.

    Parameters
    ----------
    options
        One backbone's; of several, take `options.each()`.
    num_frames
        Frames of a clip, so that a backbone that needs more is refused here; None for as many as it needs.

    Raises
    ------
    UserError
        For an unknown name, weights that cannot be had or do not fit, or frames or pixels that the model
        cannot take.
    """
    name = options.backbone
    if name.startswith(PREFIX):
        return load_huggingface(options, num_frames)
    if ":" in name:
        return load_custom(options, num_frames)
    if name == SLOW:
        return load_slow(options)
    if name == SVT:
        return load_svt(options, num_frames)
    return load_torchvision(options, num_frames)
