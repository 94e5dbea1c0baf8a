"""The columns of a corpus, and what its sources return: videos as columns, since a corpus may have millions of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from scale_ray.corpus.splits import Splits

# The columns that are known before a video is opened; the additional columns of a manifest follow them.
VIDEO_COLUMNS = pa.schema(
    [
        ("video_id", pa.string()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("label", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("target", pa.float64()),
        ("group", pa.string()),
        ("splits", pa.map_(pa.string(), pa.string())),
    ]
)


class Listing(NamedTuple):
    """The videos of a source: a table with the columns of `VIDEO_COLUMNS` but `splits`, which are beside it.

    `note` says where the splits come from; `notes` are further lines for the user. `unreachable` says of each server
    that could not be reached why (`read_corpus`). `files` names the file of each video that shares it with others, null
    for the other videos.
    """

    videos: pa.Table
    splits: Splits
    note: str
    notes: list[str]
    unreachable: Mapping[str, str]
    files: pa.ChunkedArray | None = None


def videos_table(num_videos: int, **columns: Any) -> pa.Table:
    """A table with the columns of `VIDEO_COLUMNS` but `splits`; those that are not given have no values."""
    fields = [field for field in VIDEO_COLUMNS if field.name != "splits"]
    given = {field.name: columns.get(field.name) for field in fields}
    return pa.table(
        [
            pa.nulls(num_videos, field.type)
            if given[field.name] is None
            else pa.array(given[field.name], field.type)
            if isinstance(given[field.name], list)
            else given[field.name]
            for field in fields
        ],
        schema=pa.schema(fields),
    )
