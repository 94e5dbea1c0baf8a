"""Finds the videos whose files were replaced since something of them was stored."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def changed_videos(stored: pa.Table, found: pa.Table) -> dict[str, str]:
    """What changed of each video that is in both tables of videos, by id: another file has another size.

    A size that is not known on one side is no other one.
    """
    rows = pc.index_in(found["video_id"], stored["video_id"])
    before, now = stored["size_bytes"].take(rows), found["size_bytes"]
    changed = np.flatnonzero(pc.fill_null(pc.not_equal(before, now), False))
    return {
        found["video_id"][row].as_py(): f"{before[row].as_py()} bytes in the store, {now[row].as_py()} now"
        for row in changed.tolist()
    }
