"""Rows of a manifest that are segments of a file, in seconds, and the files that several rows share."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scale_ray.corpus.cells import first_row
from scale_ray.errors import UserError
from scale_ray.files.locations import is_uri


def segments(
    start_s: pa.ChunkedArray | None, end_s: pa.ChunkedArray | None, num_rows: int, source: str
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Where each row starts and ends in its file: two nulls for the whole file, no end for one up to the end.

    Raises
    ------
    UserError
        If a row starts before its file, or does not end after its start: the message names the row.
    """
    nothing = pa.chunked_array([pa.nulls(num_rows, pa.float64())])
    end_s = nothing if end_s is None else end_s
    # An end alone is a segment from 0; 0 alone is the whole file. Adding 0 makes -0 a 0.
    start_s = pc.coalesce(nothing if start_s is None else pc.add(start_s, 0.0), pc.if_else(end_s.is_valid(), 0.0, None))
    start_s = pc.if_else(pc.and_(end_s.is_null(), pc.fill_null(pc.equal(start_s, 0.0), False)), None, start_s)
    if row := first_row(pc.fill_null(pc.less(start_s, 0.0), False)):
        raise UserError(f"{source}: expected start_s of at least 0, found {start_s[row - 1].as_py():g} in row {row}")
    if row := first_row(pc.fill_null(pc.less_equal(end_s, start_s), False)):
        found = f"{start_s[row - 1].as_py():g} to {end_s[row - 1].as_py():g}"
        raise UserError(f"{source}: expected end_s after start_s, found {found} in row {row}")
    return start_s, end_s


def with_segments(ids: pa.ChunkedArray, start_s: pa.ChunkedArray, end_s: pa.ChunkedArray) -> pa.ChunkedArray:
    """The ids of files as ids of their segments, such as `a.mp4#10-20.5`, or `a.mp4#10-` up to the end."""
    rows = np.flatnonzero(np.asarray(start_s.is_valid()))
    if not len(rows):
        return ids
    named = ids.to_pylist()
    starts, ends = (column.take(pa.array(rows)).to_pylist() for column in (start_s, end_s))
    for row, start, end in zip(rows.tolist(), starts, ends, strict=True):
        named[row] += f"#{_seconds(start)}-{'' if end is None else _seconds(end)}"
    return pa.chunked_array([pa.array(named, pa.string())])


def shared_files(
    paths: pa.ChunkedArray, given: pa.ChunkedArray, start_s: pa.ChunkedArray
) -> tuple[pa.ChunkedArray | None, bool]:
    """The file of each row that shares it with others or is a segment of it, null for other rows; None if all are null.

    A file is named by its path as the manifest gives it, so that the name is the same on every machine. Also returns
    whether there are segments. Then local paths count as equal if they lead to the same place without links.
    """
    is_segment = start_s.is_valid()
    has_segments = bool(pc.any(is_segment).as_py())
    if has_segments:
        plain = [path if is_uri(path) else os.path.normpath(path) for path in paths.to_pylist()]
        paths = pa.chunked_array([pa.array(plain, pa.string())])
    elif pc.count_distinct(paths).as_py() == len(paths):
        return None, False
    rows_of = pa.table({"path": paths, "name": given, "segment": is_segment}).group_by("path")
    files = rows_of.aggregate([("name", "min"), ("name", "count"), ("segment", "any")])
    is_shared = pc.or_(pc.greater(files["name_count"], 1), files["segment_any"])
    files = files.filter(is_shared)
    return files["name_min"].take(pc.index_in(paths, files["path"])), has_segments


def _seconds(value: float) -> str:
    return repr(value).removesuffix(".0")
