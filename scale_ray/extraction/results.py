"""The result of one video on its way from the decoder through the backbone actors to the commit.

One row per video. The decoder fills the columns of `ROW` and one column of pixels per input size; the backbone actors
replace the pixels with one column of features per target, and one of the batch size that was used; the commit reads
both kinds of rows as `VideoResult`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from scale_ray.clips import POSITION_FIELDS, VideoGeometry
from scale_ray.errors import VideoError
from scale_ray.store import GEOMETRY

# A video that could not be decoded has `stage`, `reason` and `exception`, and nulls in place of the others.
ROW = pa.schema(
    [
        ("video_id", pa.string()),
        ("mode", pa.string()),
        ("shard", pa.int64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("exception", pa.string()),
        ("positions", pa.binary()),
        ("size_bytes", pa.int64()),
        *GEOMETRY,
    ]
)
_FEATURES = "features_"
_PIXELS = "pixels_"
_BATCH = "batch_"


def pixels_column(input_size_px: int) -> str:
    """The column of the pixels at one input size: one binary value per video, uint8 (clips, frames, size, size, 3)."""
    return f"{_PIXELS}{input_size_px}"


def features_column(target: int) -> str:
    """The column of the features of one target, by its number: one binary value per video, float16 (clips, D)."""
    return f"{_FEATURES}{target}"


def batch_column(target: int) -> str:
    """The column of the clips per batch that the device's memory held for one target, by its number."""
    return f"{_BATCH}{target}"


def without_pixels(block: pa.Table) -> pa.Table:
    """The block without its columns of pixels."""
    return block.select([name for name in block.column_names if not name.startswith(_PIXELS)])


def with_columns(block: pa.Table, input_sizes_px: Sequence[int]) -> pa.Table:
    """The block with a column of pixels for each of these sizes, null for those that it has no pixels of."""
    for name in map(pixels_column, input_sizes_px):
        if name not in block.column_names:
            block = block.append_column(name, pa.nulls(len(block), pa.large_binary()))
    return block


def decoded_mask(block: pa.Table) -> np.ndarray:
    """Which videos of a block were decoded: bool (videos,)."""
    return np.array(block["positions"].is_valid().to_pylist(), bool)


@dataclass(frozen=True)
class VideoResult:
    """The clips of one video, or the error that prevented them.

    `positions` float32 (clips, 7); `features` float16 (clips, D) by the number of the target, and so is `batch_clips`,
    the clips per batch that the device's memory held; `size_bytes` is the size of the file when it was opened, None if
    unknown.
    """

    video_id: str
    shard: int
    error: VideoError | None = None
    positions: np.ndarray | None = None
    geometry: VideoGeometry | None = None
    features: Mapping[int, np.ndarray] | None = None
    size_bytes: int | None = None
    batch_clips: Mapping[int, int] = field(default_factory=dict)


def read_results(block: pa.Table) -> Iterator[VideoResult]:
    """The results of a block that the backbone actors returned."""
    for row in block.to_pylist():
        if row["positions"] is None:
            error = VideoError(row["stage"], row["reason"], row["exception"])
            yield VideoResult(row["video_id"], row["shard"], error)
            continue
        positions = np.frombuffer(row["positions"], np.float32).reshape(-1, len(POSITION_FIELDS))
        features = {
            int(name.removeprefix(_FEATURES)): np.frombuffer(value, np.float16).reshape(len(positions), -1)
            for name, value in row.items()
            if name.startswith(_FEATURES) and value is not None
        }
        geometry = VideoGeometry(*(row[name] for name in GEOMETRY.names))
        batch_clips = {int(name.removeprefix(_BATCH)): row[name] for name in row if name.startswith(_BATCH)}
        yield VideoResult(
            row["video_id"], row["shard"], None, positions, geometry, features, row["size_bytes"], batch_clips
        )
