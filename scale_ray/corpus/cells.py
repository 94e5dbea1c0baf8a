"""The cells of a manifest as texts, numbers and lists, a column at a time where its type allows it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scale_ray.errors import UserError

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def is_text(type_: pa.DataType) -> bool:
    return any(check(type_) for check in _TEXTS)


def texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cells as text without the blanks around it; null if there is none."""
    if is_text(column.type):
        trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
        return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        return column.cast(pa.string())
    return _converted(column, text, pa.string())


def text_lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Several labels per cell, from a list or from text separated by `|` or `;`; null if the cell is empty."""
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), pa.list_(pa.string()))])
    return _converted(column, _texts, pa.list_(pa.string()))


def numbers(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    """Cells as float64; null if there is no number.

    Raises
    ------
    UserError
        If a cell holds anything else than a finite number: the message names the row.
    """
    values = None
    if is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        try:
            values = (texts(column) if is_text(column.type) else column).cast(pa.float64(), safe=False)
        except pa.ArrowInvalid:  # Python reads more forms of numbers, and finds the row
            values = None
    if values is None or bool(pc.any(pc.is_inf(values), min_count=0).as_py()):
        cells = column.to_pylist()
        values = pa.chunked_array([pa.array([_number(c, name, source, row) for row, c in enumerate(cells, 1)], "f8")])
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)


def first_row(mask: pa.ChunkedArray | np.ndarray) -> int | None:
    """The number of the first row of which `mask` is true, counted from 1; None if there is none."""
    rows = np.flatnonzero(np.asarray(mask))
    return int(rows[0]) + 1 if len(rows) else None


def text(value: Any) -> str | None:
    """A cell as text; None if it is empty. A class number that pandas stored as a float becomes an integer again."""
    if value is None or value != value:
        return None
    is_integer = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_integer else value).strip() or None


def _converted(column: pa.ChunkedArray, convert: Callable[[Any], Any], type_: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array(
        [pa.array([convert(value) for value in chunk.to_pylist()], type_) for chunk in column.chunks], type_
    )


def _texts(value: Any) -> list[str] | None:
    is_list = isinstance(value, list)
    parts = value if is_list else re.split(r"[|;]", text(value) or "")
    labels = [label for part in parts if (label := text(part)) is not None]
    return labels if is_list or labels else None


def _number(value: Any, name: str, source: str, row: int) -> float | None:
    if text(value) is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise UserError(f"{source}: expected a finite number as {name}, found {value!r} in row {row}")
    return None if math.isnan(number) else number
