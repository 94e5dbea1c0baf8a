"""Columns with one list per video and one entry per clip: list<fixed_size_list<number, W>>.

All modes share this type, whatever their number of clips, so pyarrow, pandas, DuckDB, polars and Hugging Face
`datasets` read all shards as one table. Lists are read without copying their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from scale_ray.clips import POSITION_FIELDS
from scale_ray.errors import UserError

# The columns of this kind in a shard, and their numbers.
_NUMBERS = {"features": pa.float16(), "positions": pa.float32()}
CLIP_COLUMNS = tuple(_NUMBERS)


@dataclass(frozen=True)
class ClipLists:
    """A column: `lengths` int32 (videos,), the clips of each video; `values` (clips of all videos, W)."""

    lengths: np.ndarray
    values: np.ndarray


def clip_lists(name: str, values: Sequence[np.ndarray]) -> pa.ListArray:
    """The column `name` of these arrays (clips, W), one per video; videos may differ in their number of clips."""
    clips = np.ascontiguousarray(np.concatenate(values), _NUMBERS[name].to_pandas_dtype())
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(clips.reshape(-1), clips.shape[1]))


def width_of(schema: pa.Schema, name: str, path: str) -> int:
    """W of the column `name`.

    Raises
    ------
    UserError
        If there is no such column, or it has another type.
    """
    number, width = _NUMBERS[name], len(POSITION_FIELDS) if name == "positions" else None
    type_ = schema.field(name).type if name in schema.names else None
    if type_ is not None and pa.types.is_list(type_) and pa.types.is_fixed_size_list(type_.value_type):
        clip = type_.value_type
        if clip.value_type == number and clip.list_size and width in (None, clip.list_size):
            return clip.list_size
    expected = f"list<fixed_size_list<{np.dtype(number.to_pandas_dtype())}, {width or 'D'}>>"
    raise UserError(
        f"{path}: expected a shard with {name} of type {expected}, found {type_}; delete it and extract again"
    )


def read_clip_lists(table: pa.Table, name: str, path: str) -> ClipLists:
    """The column `name` of a shard.

    Raises
    ------
    UserError
        If it has another type, or if a list, a clip or a number is null.
    """
    width = width_of(table.schema, name, path)
    column = table[name]
    # Most shards have one chunk, which is not copied.
    lists = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    clips = lists.flatten()
    numbers = clips.flatten()
    if lists.null_count or clips.null_count or numbers.null_count:
        raise UserError(f"{path}: expected {name} of every clip, found null; delete it and extract again")
    return ClipLists(np.diff(lists.offsets.to_numpy()), numbers.to_numpy().reshape(-1, width))
