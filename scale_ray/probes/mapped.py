"""Room for arrays that may be larger than memory: in memory, or in files that are mapped."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from scale_ray.errors import UserError

_ROWS_AT_ONCE = 512


def by_parts(num_rows: int, made: Callable[[Tensor], Tensor], scratch: str | None) -> Tensor:
    """What `made` says of all rows, asked for some hundred at a time.

    In memory the whole is where the parts are. With a folder `scratch` it lies in a file there that has no name,
    and is gone with the tensor; the system takes its memory back when it needs room.

    Raises
    ------
    UserError
        Where the folder has no room.
    """
    first, *others = torch.arange(num_rows).split(_ROWS_AT_ONCE)
    part = made(first)
    shape = (num_rows, *part.shape[1:])
    whole = part.new_empty(shape) if scratch is None else _room(shape, part.dtype, scratch)
    whole[: len(first)] = part
    for rows in others:
        whole[rows[0] : rows[-1] + 1] = made(rows)
    return whole


def _room(shape: tuple[int, ...], dtype: torch.dtype, scratch: str) -> Tensor:
    count = math.prod(shape)
    try:
        with tempfile.NamedTemporaryFile(dir=scratch, prefix="scale-ray-") as file:
            os.posix_fallocate(file.fileno(), 0, max(count * dtype.itemsize, 1))
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
    except OSError as error:
        raise UserError(
            f"cache: expected room for {count * dtype.itemsize / 2**30:.1f} GiB of representations in {scratch}, "
            f"found: {error.strerror or error}; give another --cache"
        ) from error
