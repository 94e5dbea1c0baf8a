"""Stores with invented features, for tests of the stages after extraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scale_ray.clips import VideoGeometry
from scale_ray.config import Sampling
from scale_ray.store import ClipFeatures, StoredClips
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures, fingerprint_of

BACKBONE = {"backbone": "tiny", "weights": "none"}
GEOMETRY = VideoGeometry(120, 160, 8.0, 15.0)
FINGERPRINT = fingerprint_of(BACKBONE, Sampling())


def features_of(rng: np.random.Generator, *ids: str) -> list[VideoFeatures]:
    return [
        VideoFeatures(video_id, rng.normal(size=(16, 5)).astype(np.float16), rng.random((16, 7), np.float32), GEOMETRY)
        for video_id in ids
    ]


def corpus_of(**labels: str) -> pa.Table:
    return pa.table(
        {
            "video_id": list(labels),
            "path": [f"/videos/{name}" for name in labels],
            "size_bytes": [1] * len(labels),
            "start_s": pa.nulls(len(labels), pa.float64()),
            "end_s": pa.nulls(len(labels), pa.float64()),
            "label": list(labels.values()),
            "labels": pa.nulls(len(labels), pa.list_(pa.string())),
            "target": pa.nulls(len(labels), pa.float64()),
            "group": pa.nulls(len(labels), pa.string()),
            "splits": pa.array([[("default", "train")]] * len(labels), pa.map_(pa.string(), pa.string())),
        }
    )


def positions_of(rng: np.random.Generator, clips: int, starts_s: np.ndarray | None = None) -> np.ndarray:
    """Positions of whole-frame clips of 2 s, with random or given starts: float32 (clips, 7)."""
    starts_s = rng.uniform(0, 6, clips) if starts_s is None else starts_s
    flip = rng.choice([-1.0, 1.0], clips)
    box = np.tile([0.0, 0.0, 120.0, 160.0], (clips, 1))
    return np.column_stack([flip, box, starts_s, starts_s + 2]).astype(np.float32)


def make_store(
    folder: Path,
    features: Mapping[str, np.ndarray],
    *,
    sides: Sequence[str] | Sequence[Mapping[str, str]],
    positions: Mapping[str, np.ndarray] | None = None,
    groups: Sequence[str | None] | None = None,
    geometries: Mapping[str, VideoGeometry] | None = None,
    **columns: Sequence[Any],
) -> FeatureStore:
    """A store of these features (clips, D) by video id: `train` clips of training videos, `eval` clips of test videos.

    `sides` is the subset (train, validation or test) of each video, or its subset per split name; for videos in several
    splits, both modes are stored. `columns` are label, labels, target or the manifest's own columns.
    """
    store = FeatureStore.create(str(folder), fingerprint_of(BACKBONE, Sampling()))
    rng = np.random.default_rng(1)
    ids = list(features)
    splits = [{"default": subsets} if isinstance(subsets, str) else dict(subsets) for subsets in sides]
    types = {"label": pa.string(), "labels": pa.list_(pa.string()), "target": pa.float64()}
    corpus = {
        "video_id": pa.array(ids),
        "path": pa.array([f"/videos/{video_id}.mp4" for video_id in ids]),
        "size_bytes": pa.array([1] * len(ids), pa.int64()),
        "start_s": pa.nulls(len(ids), pa.float64()),
        "end_s": pa.nulls(len(ids), pa.float64()),
        **{name: pa.array(columns.pop(name, [None] * len(ids)), type_) for name, type_ in types.items()},
        "group": pa.array(groups or [None] * len(ids), pa.string()),
        "splits": pa.array([list(subset_of.items()) for subset_of in splits], pa.map_(pa.string(), pa.string())),
        **{name: pa.array(values) for name, values in columns.items()},
    }
    wanted: dict[str, list[str]] = {}
    for video_id, subset_of in zip(ids, splits, strict=True):
        both, test = len(subset_of) > 1, "test" in subset_of.values()
        for mode in ("train", "eval") if both else ("eval",) if test else ("train",):
            wanted.setdefault(mode, []).append(video_id)
    for mode, mode_ids in wanted.items():
        for start in range(0, len(mode_ids), 64):
            part = mode_ids[start : start + 64]
            videos = [
                VideoFeatures(
                    video_id,
                    features[video_id].astype(np.float16),
                    positions[video_id] if positions else positions_of(rng, len(features[video_id])),
                    geometries[video_id] if geometries else GEOMETRY,
                )
                for video_id in part
            ]
            store.commit(store.part_name(mode, part), mode, videos)
    store.replace_videos(pa.table(corpus))
    return store


def read_clips(store: FeatureStore, mode: str) -> ClipFeatures:
    """All stored clips of one mode, in the order of the ids."""
    return StoredClips(store, mode).read()
