"""Weight files: read without executing code from them, loaded strictly, identified by a hash."""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scale_ray.errors import UserError, first_line

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# Types that training scripts often save with the tensors: their arguments, and learning rates as NumPy numbers.
# They are safe: unpickling them only sets attributes or copies bytes, and runs no code chosen by the file.
_SAFE_TYPES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


def read_weights(weights: str) -> dict[str, Any]:
    """Read the dictionary in a file of safetensors or torch.save, without executing code from the file.

    Raises
    ------
    UserError
        If the file does not exist or contains anything other than tensors and plain values.
    """
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"weights: expected default, none or a file, found no file {weights!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # The warnings concern the pickle protocol of files that are refused anyway.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_SAFE_TYPES):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes can make the readers raise any exception
        raise UserError(
            f"weights: expected a file that contains only tensors, found in {weights!r}: {first_line(error)}"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"weights: expected a dictionary of tensors in {weights!r}, found {type(state).__name__}")
    return state


def state_in(contents: Mapping[str, Any], wrappers: Sequence[str], weights: str) -> dict[str, Tensor]:
    """The tensors of a file by name, without the enclosing dictionaries and prefixes of training scripts.

    `contents` is what `read_weights` returns; `wrappers` are the keys of dictionaries that may enclose the tensors,
    from the outermost to the innermost. `weights` is the file's name for messages.

    Raises
    ------
    UserError
        If a value is not a tensor.
    """
    state: Mapping[str, Any] = contents
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
    """Load the tensors of the file `weights` into a model; `name` is the model's name for messages.

    Raises
    ------
    UserError
        If a tensor is missing, unknown or of a different shape.
    """
    own = model.state_dict()
    # Old files lack the counters of batch norm, which are not used in evaluation mode.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unknown or misshapen:
        example = (missing + unknown + misshapen)[0]
        raise UserError(
            f"weights: {weights!r} does not fit {name}: expected {len(own)} tensors, found {len(missing)} missing, "
            f"{len(unknown)} unknown and {len(misshapen)} of a different shape, such as {example!r}"
        )
    model.load_state_dict(state, strict=False)


def unused_notes(name: str, unused: Iterable[str]) -> list[str]:
    """One line that names the tensors of a file that a backbone does not use, by the first part of their names.

    Empty if all tensors are used. `name` is that of the backbone.
    """
    counts = Counter(key.partition(".")[0] for key in unused)
    if not counts:
        return []
    groups = [f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in sorted(counts.items())]
    return [f"{name}: weights not used: {', '.join(groups)}"]


def weights_hash(model: nn.Module) -> str:
    """The identity of a model's weights: 16 hexadecimal digits of SHA-256 over tensor names and bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        digest.update(key.encode())
        # Viewed as bytes, since NumPy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return "sha256:" + digest.hexdigest()[:16]
