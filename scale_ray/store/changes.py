"""Finds the videos whose files were replaced since something of them was stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def changed_videos(stored: pa.Table, found: pa.Table) -> dict[str, str]:
    """What changed of each video that is in both tables of videos, by id: the size of its file, or its segment.

    A size that is not known on one side is no other one.
    """
    found = found.filter(pc.is_in(found["video_id"], stored["video_id"]))
    before = stored.take(pc.index_in(found["video_id"], stored["video_id"]))
    is_other = np.asarray(pc.fill_null(pc.not_equal(before["size_bytes"], found["size_bytes"]), False))
    for name in ("start_s", "end_s"):  # without one is another one
        old, new = (pc.fill_null(table[name], -1.0) for table in (before, found))
        is_other = is_other | np.asarray(pc.not_equal(old, new))
    rows = pa.array(np.flatnonzero(is_other))
    pairs = zip(before.take(rows).to_pylist(), found.take(rows).to_pylist(), strict=True)
    return {new["video_id"]: _difference(old, new) for old, new in pairs}


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    if None not in (old["size_bytes"], new["size_bytes"]) and old["size_bytes"] != new["size_bytes"]:
        return f"{old['size_bytes']} bytes in the store, {new['size_bytes']} now"
    return f"{_segment(old)} in the store, {_segment(new)} now"


def _segment(video: dict[str, Any]) -> str:
    if video["start_s"] is None:
        return "the whole file"
    end = "its end" if video["end_s"] is None else f"{video['end_s']:g} s"
    return f"{video['start_s']:g} s to {end}"
