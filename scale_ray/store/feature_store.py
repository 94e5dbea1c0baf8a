"""The feature store: one backbone's features of many videos, as plain Parquet.

    store.json                    format, fingerprint and how the backbone was loaded, written first
    videos.parquet                one row per video, replaced as a whole by each run
    features/part-MODE-*.parquet  immutable shards, each complete or absent
    failures/part-*.parquet       the ledger of videos that could not be used
    leases/*.json                 the process that is writing now

Readable with pyarrow, pandas and DuckDB without this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from scale_ray.clips import POSITION_FIELDS
from scale_ray.errors import UserError
from scale_ray.store.schema import GEOMETRY, VideoFeatures
from scale_ray.store.shard_store import ShardStore


class FeatureStore(ShardStore):
    """The features and positions of the clips of many videos, by one backbone and sampling."""

    HEADER, FOLDER, KIND, MADE_BY = "store.json", "features", "a feature store", "extract"
    FINGERPRINT = MappingProxyType({"backbone": str, "weights": str})
    CONTENTS, FLAG = "the features of one backbone and sampling", "--store"

    @property
    def origin(self) -> dict[str, Any]:
        """The data an aggregator records about this store: the fingerprint and how the backbone was loaded."""
        return {**self.fingerprint, **({"made_with": self.loading_options} if self.loading_options else {})}

    def commit(self, part_name: str, mode: str, videos: Sequence[VideoFeatures]) -> None:
        """Write one shard atomically: one row per video, all with the same number of clips."""
        clips, width = videos[0].features.shape
        table = pa.table(
            {
                "video_id": pa.array([video.video_id for video in videos], pa.string()),
                "mode": pa.array([mode] * len(videos), pa.string()),
                "features": _tensor_column([video.features for video in videos], np.float16, (clips, width)),
                "positions": _tensor_column(
                    [video.positions for video in videos], np.float32, (clips, len(POSITION_FIELDS))
                ),
                **{
                    field.name: pa.array([getattr(video.geometry, field.name) for video in videos], field.type)
                    for field in GEOMETRY
                },
            }
        )
        self.write(table, self.FOLDER, part_name)

    def feature_width(self) -> int | None:
        """D, from the schema of any shard; None if there is none yet."""
        parts = self.parts("features/part-")
        return self.clip_shape(parts[0])[1] if parts else None

    def clip_shape(self, path: str) -> tuple[int, int]:
        """Clips per video and feature width D of one shard, from its schema."""
        with self._opened_part(path) as file:
            schema = file.schema_arrow
        type_ = schema.field("features").type if "features" in schema.names else None
        if not isinstance(type_, pa.FixedShapeTensorType) or len(type_.shape) != 2:
            raise UserError(f"{path}: expected a shard with features as tensors (clips, width), found {type_}")
        clips, width = type_.shape
        return clips, width


def _tensor_column(values: list[np.ndarray], dtype: type, shape: tuple[int, int]) -> pa.Array:
    stacked: np.ndarray = np.ascontiguousarray(np.stack(values), dtype)
    assert stacked.shape[1:] == shape
    return pa.FixedShapeTensorArray.from_numpy_ndarray(stacked)
