"""Files of tensors: read without executing anything, fitted strictly, told apart by a hash."""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scale_ray.errors import UserError, first_line

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# What training scripts leave beside the tensors: their arguments, and learning rates as numbers of numpy.
# To restore one of these sets attributes or copies bytes; it runs nothing of the file's choosing.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


def read_weights(weights: str) -> dict[str, Any]:
    """The dictionary in a file: safetensors, or what torch.save writes; nothing in it is executed.

    Raises
    ------
    UserError
        Where there is no such file, or it holds something other than tensors and plain values.
    """
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"weights: expected default, none or a file, found no file {weights!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Warnings of pickle protocols, in files that are then refused.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_HARMLESS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any kind: the readers raise whatever its bytes lead to
        raise UserError(
            f"weights: expected a file of tensors alone, found in {weights!r}: {first_line(error)}"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"weights: expected a dictionary of tensors in {weights!r}, found {type(state).__name__}")
    return state


def state_in(read: Mapping[str, Any], wrappers: Sequence[str], weights: str) -> dict[str, Tensor]:
    """The tensors by name, taken out of the wrappers that training scripts put around them.

    Raises
    ------
    UserError
        Where something else than a tensor is among them.
    """
    state: Mapping[str, Any] = read
    for wrapper in wrappers:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"weights: expected a dictionary of tensors in {weights!r}, found {key!r}: {type(value).__name__}"
            )
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str, weights: str) -> None:
    """Put a file's tensors into a model.

    Raises
    ------
    UserError
        Where a tensor is missing, unknown or of another shape.
    """
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


def hash_of(model: nn.Module) -> str:
    """What tells a model's weights from any others: 16 hexadecimal digits of SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        digest.update(key.encode())
        # As bytes: numpy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return "sha256:" + digest.hexdigest()[:16]
