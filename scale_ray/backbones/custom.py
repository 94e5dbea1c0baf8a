"""A user's own backbone: `package.module:function`.

The function takes nothing, or one keyword `weights`, the value of --weights as given (`default`, `none` or a
FILE). It returns either

- a `scale_ray.backbones.Backbone`, or
- an nn.Module that maps floats (clips, 3, T, S, S), pixels normalised, to (clips, D), with the attribute
  `input_px` = S and, where they are not as here, `num_frames` = None (any), `mean` and `std` (ImageNet's).

Its module must be importable wherever the work runs: an installed package, or a folder on PYTHONPATH.
Whatever it is made of, its weights are told from others by a hash. Random numbers are seeded while the
function runs, so that the same command finds the same random weights again.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from scale_ray.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, require_frames
from scale_ray.backbones.random_weights import seeded
from scale_ray.backbones.weights import hash_of
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError


def load_custom(options: BackboneOptions, num_frames: int | None) -> Backbone:
    """What the user's function returns, as a backbone, after a look at two black clips.

    Raises
    ------
    UserError
        Where the function is not there, fails, returns something else, or its model does not give one
        vector a clip.
    """
    name = options.backbone
    function = _function(name)
    with seeded(options.backbone_seed):
        try:
            made = function(**_arguments(function, options))
        except UserError:
            raise
        except Exception as error:  # a stranger's code; --debug shows where
            raise UserError(f"backbone: {name} failed: {type(error).__name__}: {error}") from error
    backbone = made if isinstance(made, Backbone) else _wrapped(made, name)
    backbone.name = name
    backbone.weights_id = hash_of(backbone.trunk)
    if options.input_px is not None:
        backbone.input_px = options.input_px
    if not backbone.sees_video:
        backbone.frame_pooling = options.frame_pooling
    backbone.normalise_with(
        options.pixel_mean or backbone.mean.flatten().tolist(), options.pixel_std or backbone.std.flatten().tolist()
    )
    backbone.compute_in(options.precision)
    require_frames(name, backbone.num_frames, num_frames)
    _require_one_vector_a_clip(backbone, num_frames or backbone.num_frames or 16)
    return backbone


def _function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"backbone: expected an importable module {module_name!r} for {name}, found none named {error.name!r}; "
            "install it, or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # a stranger's code
        raise UserError(f"backbone: {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"backbone: expected a function {function_name!r} in {module_name}, found none")
    return function


def _arguments(function: Callable[..., Any], options: BackboneOptions) -> dict[str, str]:
    parameters = inspect.signature(function).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if not set(needed) <= {"weights"}:
        raise UserError(
            f"backbone: expected {options.backbone} to take nothing or the keyword weights, found {', '.join(needed)}"
        )
    if "weights" in parameters:
        return {"weights": options.weights}
    if options.weights not in ("default", "none"):
        raise UserError(f"weights: {options.backbone} takes no weights, found {options.weights!r}")
    return {}


def _wrapped(made: Any, name: str) -> Backbone:
    if not isinstance(made, nn.Module):
        raise UserError(f"backbone: expected {name} to return a Backbone or an nn.Module, found {type(made).__name__}")
    input_px = getattr(made, "input_px", None)
    if not isinstance(input_px, int):
        raise UserError(f"backbone: expected an attribute input_px (an int) on what {name} returns, found {input_px!r}")
    return Backbone(
        name,
        made,
        input_px=input_px,
        num_frames=getattr(made, "num_frames", None),
        mean=getattr(made, "mean", IMAGENET_MEAN),
        std=getattr(made, "std", IMAGENET_STD),
    )


def _require_one_vector_a_clip(backbone: Backbone, num_frames: int) -> None:
    size = f"2 clips of {num_frames} frames and {backbone.input_px} px"
    try:
        features = backbone(backbone.black_clips(2, num_frames))
    except Exception as error:  # a stranger's code
        raise UserError(f"backbone: {backbone.name} fails on {size}: {type(error).__name__}: {error}") from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 2:
        found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise UserError(f"backbone: expected {backbone.name} to map {size} to shape (2, D), found {found}")
