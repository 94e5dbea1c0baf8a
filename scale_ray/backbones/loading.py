"""Loads a backbone by its name and options."""

from __future__ import annotations

from scale_ray.backbones.backbone import Backbone
from scale_ray.backbones.custom import load_custom
from scale_ray.backbones.huggingface import PREFIX, load_huggingface
from scale_ray.backbones.i3d import NAME as I3D
from scale_ray.backbones.i3d import load_i3d
from scale_ray.backbones.slow_r50 import NAME as SLOW
from scale_ray.backbones.slow_r50 import load_slow
from scale_ray.backbones.svt import NAME as SVT
from scale_ray.backbones.svt import load_svt
from scale_ray.backbones.torchvision_models import load_torchvision
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError


def is_custom(name: str) -> bool:
    """Whether a backbone is a user's own `package.module:function`, which is code that runs when it is loaded."""
    return ":" in name and not name.startswith(PREFIX)


def load_backbone(options: BackboneOptions, num_frames: int | None, eval_scale: float = 1.0) -> Backbone:
    """Load the backbone that the options name, on the CPU.

    Parameters
    ----------
    options
        The options of one backbone; if they name several, call this once for each of `options.each()`.
    num_frames
        Frames per clip; a backbone that needs more is refused. None: as many as the backbone needs.
    eval_scale
        Input size in mode `eval` over that of the other modes (`Sampling.eval_scale`), for trained weights that take
        any size, unless the options give the size itself.

    Raises
    ------
    UserError
        If the name is unknown, if the weights cannot be loaded or do not fit, or if the model does not accept
        the number of frames or the input size.
    """
    backbone = _loaded(options, num_frames)
    if options.eval_input_px is None:
        if options.weights != "none":
            # The batch norms of random weights fit the size that they were set at: at 37 instead of 32 px, features of
            # shufflenet_v2_x0_5 are beyond float16.
            backbone.scale_eval_input(eval_scale)
        return backbone
    size_px, step = options.eval_input_px, backbone.size_step_px
    if size_px != backbone.input_px and (step is None or size_px % step):
        sizes = f"{backbone.input_px} px" if step is None else f"a multiple of {step} px"
        raise UserError(f"eval_input_px: {options.backbone} expected {sizes}, found {size_px}")
    backbone.eval_input_px = size_px
    return backbone


def _loaded(options: BackboneOptions, num_frames: int | None) -> Backbone:
    name = options.backbone
    if name.startswith(PREFIX):
        return load_huggingface(options, num_frames)
    if is_custom(name):
        return load_custom(options, num_frames)
    if name == SLOW:
        return load_slow(options)
    if name == I3D:
        return load_i3d(options)
    if name == SVT:
        return load_svt(options, num_frames)
    return load_torchvision(options, num_frames)
