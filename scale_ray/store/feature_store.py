"""The feature store: one backbone's features of many videos, as plain Parquet.

    store.json                    format, fingerprint and how the backbone was loaded, written first
    videos.parquet                one row per video, replaced as a whole by each run
    features/part-MODE-*.parquet  immutable shards, each complete or absent
    failures/part-*.parquet       the ledger of videos that could not be used
    leases/*.json                 the process that is writing now

Readable without this package: the folder of shards is one table for pyarrow, pandas, DuckDB, polars and Hugging Face
`datasets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from scale_ray.clips import POSITION_FIELDS
from scale_ray.store.clip_lists import CLIP_COLUMNS, clip_lists, width_of
from scale_ray.store.schema import GEOMETRY, VideoFeatures
from scale_ray.store.shard_store import ShardStore


class FeatureStore(ShardStore):
    """The features and positions of the clips of many videos, by one backbone and sampling."""

    HEADER, FOLDER, KIND, MADE_BY = "store.json", "features", "a feature store", "extract"
    FINGERPRINT = MappingProxyType({"backbone": str, "weights": str})
    CONTENTS, FLAG = "the features of one backbone and sampling", "--store"
    # 2: a tensor type for each number of clips. 1 and 2: boxes of mirrored videos and of pixels that are not square
    # were others, so the clips must be decoded again.
    FORMAT = 3
    DESCRIPTION = MappingProxyType(
        {
            "positions": list(POSITION_FIELDS),
            "sizes": "pixels of the video as displayed: turned and mirrored, with square pixels",
        }
    )

    @property
    def origin(self) -> dict[str, Any]:
        """The data an aggregator records about this store: the fingerprint and how the backbone was loaded."""
        return {**self.fingerprint, **({"made_with": self.loading_options} if self.loading_options else {})}

    def commit(self, part_name: str, mode: str, videos: Sequence[VideoFeatures]) -> None:
        """Write one shard atomically: one row per video."""
        assert all(len(video.features) == len(video.positions) for video in videos)
        table = pa.table(
            {
                "video_id": pa.array([video.video_id for video in videos], pa.string()),
                "mode": pa.array([mode] * len(videos), pa.string()),
                **{name: clip_lists(name, [getattr(video, name) for video in videos]) for name in CLIP_COLUMNS},
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
        return self.width_of_part(parts[0]) if parts else None

    def width_of_part(self, path: str) -> int:
        """The feature width D of one shard, from its schema.

        Raises
        ------
        UserError
            If it is damaged, or its columns of clips have other types.
        """
        with self._opened_part(path) as file:
            schema = file.schema_arrow
        feature_width, _ = (width_of(schema, name, path) for name in CLIP_COLUMNS)
        return feature_width
