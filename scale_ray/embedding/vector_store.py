"""Vectors of videos, as plain Parquet: what `embed` writes.

    vectors.json                 format and fingerprint: aggregator, backbone, sampling
    videos.parquet               a row a video, as in a feature store
    vectors/part-MODE-*.parquet  video_id, mode, label, split, vector, and the video's geometry
    clips/part-MODE-*.parquet    if asked for: video_id, mode, clip, start_s, end_s, vector
    failures/part-*.parquet      the ledger

It is a store like that of features, with the same commit, lease and ledger: a part is there whole or not at all,
and what is done is not done again. The aggregator turns features into vectors when they are committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scale_ray.aggregator import Aggregator
from scale_ray.backbones import hash_of
from scale_ray.clips import MODES, POSITION_FIELDS, VideoGeometry
from scale_ray.config import Representing
from scale_ray.embedding.video_model import vectors_of
from scale_ray.errors import UserError
from scale_ray.store import GEOMETRY, FeatureStore, ShardStore, StoredClips, VideoFeatures

if TYPE_CHECKING:
    import pandas as pd

_VIDEOS_OF_PART = 1024


class VectorStore(ShardStore):
    """A store of vectors at a folder or URI; `prepare` it before anything is committed."""

    HEADER, FOLDER, KIND, MADE_BY = "vectors.json", "vectors", "a folder of vectors", "embed"
    CONTENTS, FLAG = "the vectors of one aggregator, backbone and sampling", "--out"

    def prepare(self, aggregator: Aggregator, representing: Representing, *, per_clip: bool, split: str | None) -> None:
        """What the next commits compute, and the split whose sides they write."""
        self._aggregator, self._ensemble, self._per_clip, self._split = (
            aggregator,
            representing.ensemble,
            per_clip,
            split,
        )
        self._known: tuple[dict[str, str], dict[str, str]] | None = None

    def to_pandas(self) -> pd.DataFrame:
        """A row per video: `video_id`, `mode`, `label`, `split` and `vector` (float32, D + E)."""
        import pandas as pd

        columns = ["video_id", "mode", "label", "split", "vector"]
        table = self._read_parts(f"{self.FOLDER}/part-", columns)
        return pd.DataFrame(columns=columns) if table is None else table.sort_by("video_id").to_pandas()

    def refuse_others(self, store: FeatureStore) -> None:
        """Raise a UserError where the vector of one of a store's videos says another label or side than the store."""
        table = self._read_parts(f"{self.FOLDER}/part-", ["video_id", "label", "split"])
        known = set(store.videos()["video_id"].to_pylist())
        labels, sides = store.labels(), store.splits(self._split)
        other = [
            row["video_id"]
            for row in ([] if table is None else table.to_pylist())
            if row["video_id"] in known
            and (row["label"], row["split"]) != (labels.get(row["video_id"]), sides.get(row["video_id"]))
        ]
        if other:
            raise UserError(
                f"{self.location}: expected vectors with the labels and sides of the split as they are now, found "
                f"{len(other)} with others, such as that of {min(other)!r}; give another --out"
            )

    def commit(self, part_name: str, mode: str, videos: Sequence[VideoFeatures]) -> None:
        """Write the vectors of some videos; the part of their clips first, since the other says that they are done."""
        if self._known is None:
            self._known = self.labels(), self.splits(self._split)
        labels, sides = self._known
        features, positions = (np.stack([getattr(v, name) for v in videos]) for name in ("features", "positions"))
        clips = vectors_of(self._aggregator, features, positions, self._ensemble)
        ids = [video.video_id for video in videos]
        if self._per_clip:
            self.write(_clip_table(ids, mode, clips, positions), "clips", part_name)
        table = pa.table(
            {
                "video_id": pa.array(ids, pa.string()),
                "mode": pa.array([mode] * len(ids), pa.string()),
                "label": pa.array([labels.get(video_id) for video_id in ids], pa.string()),
                "split": pa.array([sides.get(video_id) for video_id in ids], pa.string()),
                "vector": _vector_column(clips.mean(1)),
                **{
                    field.name: pa.array([getattr(video.geometry, field.name) for video in videos], field.type)
                    for field in GEOMETRY
                },
            }
        )
        self.write(table, self.FOLDER, part_name)


def fingerprint_of_vectors(aggregator: Aggregator, representing: Representing, *, per_clip: bool) -> dict[str, Any]:
    """What must be equal for vectors to belong into one folder."""
    origin = {name: value for name, value in aggregator.origin.items() if name != "made_with"}
    return {**origin, "aggregator": hash_of(aggregator), **representing.to_dict(), "per_clip": per_clip}


def embed_store(store: FeatureStore, vectors: VectorStore, progress: Any) -> int:
    """Vectors of all videos of a feature store that have none yet; how many there are now.

    Each video once: test videos of the split from their `eval` clips, others from their `train` clips, and from
    whatever clips there are where these are not. A part at a time: the features need not fit into memory.

    Raises
    ------
    UserError
        Where vectors are there that were written for another split, or with other labels.
    """
    vectors.refuse_others(store)
    known = store.videos()
    vectors.replace_videos(known.drop_columns([name for name in GEOMETRY.names if name in known.column_names]))
    sides = store.splits(vectors._split)
    stored = {mode: store.stored_ids(mode) for mode in MODES}
    done = set().union(*(vectors.stored_ids(mode) for mode in MODES))
    measured = store.geometries()
    wanted: dict[str, set[str]] = {mode: set() for mode in MODES}
    for video_id in sorted(set().union(*stored.values())):
        first = "eval" if sides.get(video_id) == "test" else "train"
        mode = next(m for m in (first, "eval", "train", "augmented") if video_id in stored[m])
        if video_id not in done:
            wanted[mode].add(video_id)
    progress.to(len(done))
    for mode, ids in wanted.items():
        clips = StoredClips(store, mode, ids)
        for number, part in enumerate(clips.parts):
            for begin in range(0, len(part.rows), _VIDEOS_OF_PART):
                read = clips.read_rows(number, begin, begin + _VIDEOS_OF_PART)
                videos = [
                    VideoFeatures(video_id, features, positions, _geometry(measured[video_id]))
                    for video_id, features, positions in zip(read.video_ids, read.features, read.positions, strict=True)
                ]
                vectors.commit(vectors.part_name(mode, read.video_ids, "embed"), mode, videos)
                progress.advance(len(videos))
    vectors.replace_videos(known.drop_columns([name for name in GEOMETRY.names if name in known.column_names]))
    return len(set().union(*(vectors.stored_ids(mode) for mode in MODES)))


def _geometry(row: Mapping[str, Any]) -> VideoGeometry:
    return VideoGeometry(*(row[name] for name in GEOMETRY.names))


def _clip_table(ids: Sequence[str], mode: str, clips: np.ndarray, positions: np.ndarray) -> pa.Table:
    num_videos, num_clips, _ = clips.shape
    start, end = (positions[..., POSITION_FIELDS.index(name)].reshape(-1) for name in POSITION_FIELDS[-2:])
    return pa.table(
        {
            "video_id": pa.array(np.repeat(np.array(ids, object), num_clips), pa.string()),
            "mode": pa.array([mode] * num_videos * num_clips, pa.string()),
            "clip": pa.array(np.tile(np.arange(num_clips), num_videos), pa.int32()),
            "start_s": pa.array(start, pa.float32()),
            "end_s": pa.array(end, pa.float32()),
            "vector": _vector_column(clips.reshape(num_videos * num_clips, -1)),
        }
    )


def _vector_column(vectors: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
