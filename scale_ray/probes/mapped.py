"""Tensors that are computed part by part, in memory or, if they may not fit there, in memory-mapped files."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from scale_ray.errors import UserError

ROWS_AT_ONCE = 512


def by_parts(
    num_rows: int, compute: Callable[[Tensor], Tensor], scratch: str | None, rows_at_once: int = ROWS_AT_ONCE
) -> Tensor:
    """`compute(rows)` for all rows, called for `rows_at_once` rows at a time and joined.

    Without `scratch` the result is in memory, on the device of the parts. With a folder `scratch` it is mapped from a
    file there without a name: the file disappears with the tensor, and the system can evict its pages from memory.

    Raises
    ------
    UserError
        If the folder has too little free space.
    """
    first, *others = torch.arange(num_rows).split(rows_at_once)
    part = compute(first)
    shape = (num_rows, *part.shape[1:])
    whole = part.new_empty(shape) if scratch is None else _mapped_empty(shape, part.dtype, scratch)
    whole[: len(first)] = part
    for rows in others:
        whole[rows[0] : rows[-1] + 1] = compute(rows)
    return whole


def _mapped_empty(shape: tuple[int, ...], dtype: torch.dtype, scratch: str) -> Tensor:
    count = math.prod(shape)
    try:
        with tempfile.NamedTemporaryFile(dir=scratch, prefix="scale-ray-") as file:
            os.posix_fallocate(file.fileno(), 0, max(count * dtype.itemsize, 1))
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
    except OSError as error:
        raise UserError(
            f"cache: expected {count * dtype.itemsize / 2**30:.1f} GiB of free space for representations in "
            f"{scratch}, found: {error.strerror or error}; give another --cache"
        ) from error
