"""A user's own backbone: `package.module:function`.

The function takes no parameters, or the single keyword `weights`: the value of --weights (`default`, `none` or
a FILE). It returns either

- a `scale_ray.backbones.Backbone`, or
- an nn.Module that maps normalised pixels, floats (clips, 3, T, S, S), to (clips, D). It has the attribute
  `input_px` = S and, optionally, `num_frames` (default None: any number), `mean` and `std` (default ImageNet's), and
  `size_step_px`, if it takes every S that is a multiple of it (default None: only `input_px`).

Its module is an installed package, which every machine needs, or in a folder on PYTHONPATH of the command alone: its
Python files are sent to the actors, which look into them last, after all libraries.
The weights are identified by a hash of their content. Random numbers are seeded while the function runs, so
the same command always creates the same random weights.
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
from scale_ray.backbones.weights import weights_hash
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError
from scale_ray.files.module_files import files_of_module


def load_custom(options: BackboneOptions, num_frames: int | None) -> Backbone:
    """Call the user's function and return its result as a backbone, checked on two black clips.

    Raises
    ------
    UserError
        If the function does not exist or fails, if it returns something else, or if its model does not return
        one vector per clip.
    """
    name = options.backbone
    function = _imported_function(name)
    with seeded(options.backbone_seed):
        try:
            returned = function(**_arguments(function, options))
        except UserError:
            raise
        except Exception as error:  # third-party code; --debug shows the traceback
            raise UserError(f"backbone: {name} failed: {type(error).__name__}: {error}") from error
    backbone = returned if isinstance(returned, Backbone) else _wrapped(returned, name)
    backbone.name = name
    backbone.module_files = files_of_module(name.partition(":")[0])
    backbone.weights_id = weights_hash(backbone.trunk)
    if options.input_px is not None:
        backbone.input_px = backbone.eval_input_px = options.input_px
    if not backbone.sees_video:
        backbone.frame_pooling = options.frame_pooling
    backbone.normalise_with(
        options.pixel_mean or backbone.mean.flatten().tolist(), options.pixel_std or backbone.std.flatten().tolist()
    )
    backbone.compute_in(options.precision)
    require_frames(name, backbone.num_frames, num_frames)
    _require_one_vector_per_clip(backbone, num_frames or backbone.num_frames or 16)
    return backbone


def _imported_function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"backbone: expected an importable module {module_name!r} for {name}, "
            f"found no module named {error.name!r}; install it, or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # third-party code
        raise UserError(f"backbone: {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"backbone: expected a function {function_name!r} in {module_name}, found none")
    return function


def _arguments(function: Callable[..., Any], options: BackboneOptions) -> dict[str, str]:
    parameters = inspect.signature(function).parameters
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if not set(required) <= {"weights"}:
        raise UserError(
            f"backbone: expected {options.backbone} to take no parameters or only weights, found {', '.join(required)}"
        )
    if "weights" in parameters:
        return {"weights": options.weights}
    if options.weights not in ("default", "none"):
        raise UserError(
            f"weights: expected default or none, since {options.backbone} takes no weights, found {options.weights!r}"
        )
    return {}


def _wrapped(model: Any, name: str) -> Backbone:
    if not isinstance(model, nn.Module):
        raise UserError(f"backbone: expected {name} to return a Backbone or an nn.Module, found {type(model).__name__}")
    input_px = getattr(model, "input_px", None)
    if not isinstance(input_px, int):
        raise UserError(f"backbone: expected an int attribute input_px of the module of {name}, found {input_px!r}")
    return Backbone(
        name,
        model,
        input_px=input_px,
        size_step_px=getattr(model, "size_step_px", None),
        num_frames=getattr(model, "num_frames", None),
        mean=getattr(model, "mean", IMAGENET_MEAN),
        std=getattr(model, "std", IMAGENET_STD),
    )


def _require_one_vector_per_clip(backbone: Backbone, num_frames: int) -> None:
    input_text = f"2 clips of {num_frames} frames and {backbone.input_px} px"
    try:
        features = backbone(backbone.black_clips(2, num_frames))
    except Exception as error:  # third-party code
        raise UserError(f"backbone: {backbone.name} fails on {input_text}: {type(error).__name__}: {error}") from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 2:
        actual = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise UserError(f"backbone: expected {backbone.name} to map {input_text} to shape (2, D), found {actual}")
