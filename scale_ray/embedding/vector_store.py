"""The vector store that `embed` writes: vectors of videos as plain Parquet.

    vectors.json                 format and fingerprint: aggregator, backbone, sampling
    videos.parquet               one row per video, as in a feature store
    vectors/part-MODE-*.parquet  video_id, mode, label, split, vector, and the geometry of the video
    clips/part-MODE-*.parquet    with `per_clip`: video_id, mode, clip, start_s, end_s, vector
    failures/part-*.parquet      the ledger

Commit, lease and ledger are those of the feature store: a part is written atomically, and videos that have a vector
are skipped. Features are turned into vectors when they are committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scale_ray.aggregator import Aggregator, videos_per_block
from scale_ray.backbones import weights_hash
from scale_ray.clips import MODES, POSITION_FIELDS, VideoGeometry
from scale_ray.config import Representing
from scale_ray.console import Progress
from scale_ray.embedding.video_model import clip_vectors
from scale_ray.errors import UserError
from scale_ray.store import GEOMETRY, FeatureStore, ShardStore, StoredClips, VideoFeatures, changed_videos

if TYPE_CHECKING:
    import pandas as pd

_VIDEOS_PER_PART = 1024


class VectorStore(ShardStore):
    """A store of vectors at a folder or URI; call `prepare` before the first `commit`."""

    HEADER, FOLDER, KIND, MADE_BY = "vectors.json", "vectors", "a folder of vectors", "embed"
    FORMAT = 2
    CONTENTS, FLAG = "the vectors of one aggregator, backbone and sampling", "--out"

    def prepare(self, aggregator: Aggregator, representing: Representing, *, per_clip: bool, split: str | None) -> None:
        """Set how the following commits compute vectors, and from which split they take the subset of each video."""
        self._aggregator, self._representing, self._per_clip = aggregator, representing, per_clip
        self._split = split
        self._labels_and_subsets: tuple[dict[str, str], dict[str, str]] | None = None

    def subsets_in(self, store: ShardStore) -> dict[str, str]:
        """Subset (train, validation or test) of every video of a store, by id, in the split given to `prepare`."""
        return store.splits(self._split)

    def to_pandas(self) -> pd.DataFrame:
        """One row per video: `video_id`, `mode`, `label`, `split` (its subset) and `vector` (float32)."""
        import pandas as pd

        columns = ["video_id", "mode", "label", "split", "vector"]
        table = self.read_parts(f"{self.FOLDER}/part-", columns)
        return pd.DataFrame(columns=columns) if table is None else table.sort_by("video_id").to_pandas()

    def check_labels(self, store: FeatureStore) -> None:
        """Raise a UserError if vectors of the store's videos were written with another label or subset than it has."""
        table = self.read_parts(f"{self.FOLDER}/part-", ["video_id", "label", "split"])
        known = set(store.videos()["video_id"].to_pylist())
        labels, subsets = store.labels(), self.subsets_in(store)
        differing = [
            row["video_id"]
            for row in ([] if table is None else table.to_pylist())
            if row["video_id"] in known
            and (row["label"], row["split"]) != (labels.get(row["video_id"]), subsets.get(row["video_id"]))
        ]
        if differing:
            raise UserError(
                f"{self.location}: expected vectors with the current labels and subsets of the videos, found "
                f"{len(differing)} that differ, such as that of {min(differing)!r}; give another --out"
            )

    def check_files(self, store: FeatureStore) -> None:
        """Raise a UserError if vectors are of files that were replaced, and whose features were extracted again."""
        stored = self.videos()
        done = pa.array(sorted(_ids_of_all_modes(self)), pa.string())
        changed = changed_videos(stored.filter(pc.is_in(stored["video_id"], done)), store.videos())
        if changed:
            raise UserError(
                f"{self.location}: expected vectors of the files that {store.location} has features of, found "
                f"{len(changed)} of files that were replaced since, such as {min(changed)!r}; give another --out"
            )

    def commit(self, part_name: str, mode: str, videos: Sequence[VideoFeatures]) -> None:
        """Write the vectors of some videos; those of clips first, since the part in `vectors/` marks videos as done."""
        if self._labels_and_subsets is None:
            self._labels_and_subsets = self.labels(), self.subsets_in(self)
        labels, subsets = self._labels_and_subsets
        features = np.stack([video.features for video in videos])
        positions = np.stack([video.positions for video in videos])
        clips = clip_vectors(self._aggregator, features, positions, self._representing)
        ids = [video.video_id for video in videos]
        if not np.isfinite(clips).all():
            video_id = ids[int(np.argmin(np.isfinite(clips).all(axis=(1, 2))))]
            raise UserError(f"{video_id}: expected a finite vector, found one that is not: a feature or weight is not")
        if self._per_clip:
            self.write(_clip_table(ids, mode, clips, positions), "clips", part_name)
        table = pa.table(
            {
                "video_id": pa.array(ids, pa.string()),
                "mode": pa.array([mode] * len(ids), pa.string()),
                "label": pa.array([labels.get(video_id) for video_id in ids], pa.string()),
                "split": pa.array([subsets.get(video_id) for video_id in ids], pa.string()),
                "vector": _vector_column(clips.mean(1)),
                **{
                    field.name: pa.array([getattr(video.geometry, field.name) for video in videos], field.type)
                    for field in GEOMETRY
                },
            }
        )
        self.write(table, self.FOLDER, part_name)


def fingerprint_of_vectors(aggregator: Aggregator, representing: Representing, *, per_clip: bool) -> dict[str, Any]:
    """Everything that must match for vectors to share a folder."""
    origin = {name: value for name, value in aggregator.origin.items() if name != "made_with"}
    chosen, defaults = representing.to_dict(), Representing().to_dict()
    # Options that earlier versions did not have are left out at their defaults, so that their vectors still match.
    chosen = {name: value for name, value in chosen.items() if name == "ensemble" or value != defaults[name]}
    return {**origin, "aggregator": weights_hash(aggregator), **chosen, "per_clip": per_clip}


def embed_store(store: FeatureStore, vectors: VectorStore, progress: Progress) -> int:
    """Write the vectors of all videos of a feature store that have none yet; returns how many have one now.

    Each video gets one vector: test videos of the split from their `eval` clips, others from their `train` clips, or
    from the clips of another mode if there are none of these. Works part by part, so that the features need not fit
    into memory.

    Raises
    ------
    UserError
        If existing vectors were written for another split or with other labels.
    """
    vectors.check_labels(store)
    vectors.check_files(store)
    vectors.replace_videos(store.videos())
    done = _ids_of_all_modes(vectors)
    geometries = store.geometries()
    progress.to(len(done))
    for mode, ids in _ids_by_mode(store, vectors.subsets_in(store), done).items():
        clips = StoredClips(store, mode, ids)
        for number, part in enumerate(clips.parts):
            per_part = videos_per_block(_VIDEOS_PER_PART, clips.num_clips)
            for begin in range(0, len(part.rows), per_part):
                block = clips.read_rows(number, begin, begin + per_part)
                rows = zip(block.video_ids, block.features, block.positions, strict=True)
                videos = [
                    VideoFeatures(video_id, features, positions, _geometry(geometries[video_id]))
                    for video_id, features, positions in rows
                ]
                vectors.commit(vectors.part_name(mode, block.video_ids, "embed"), mode, videos)
                progress.advance(len(videos))
    vectors.replace_videos(store.videos())  # once more: the geometries are read from the new parts
    return len(_ids_of_all_modes(vectors))


def _ids_of_all_modes(store: ShardStore) -> set[str]:
    return set().union(*(store.stored_ids(mode) for mode in MODES))


def _ids_by_mode(store: FeatureStore, subsets: Mapping[str, str], done: set[str]) -> dict[str, set[str]]:
    """Ids of the videos to embed, by the mode of the clips that each is embedded from."""
    stored = {mode: store.stored_ids(mode) for mode in MODES}
    ids: dict[str, set[str]] = {mode: set() for mode in MODES}
    for video_id in sorted(set().union(*stored.values()) - done):
        preferred = "eval" if subsets.get(video_id) == "test" else "train"
        mode = next(m for m in (preferred, "eval", "train", "augmented") if video_id in stored[m])
        ids[mode].add(video_id)
    return ids


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
