"""Stores of made-up features, for tests of what comes after extraction."""

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
            "label": list(labels.values()),
            "labels": pa.nulls(len(labels), pa.list_(pa.string())),
            "target": pa.nulls(len(labels), pa.float64()),
            "group": pa.nulls(len(labels), pa.string()),
            "splits": pa.array([[("default", "train")]] * len(labels), pa.map_(pa.string(), pa.string())),
        }
    )


def positions_of(rng: np.random.Generator, clips: int, starts_s: np.ndarray | None = None) -> np.ndarray:
    """Positions of clips of the whole frame, 2 s long, at random or given starts: float32 (clips, 7)."""
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
    **columns: Sequence[Any],
) -> FeatureStore:
    """A store of these videos' features (clips, D), by id: `train` clips of training videos, `eval` of test videos.

    `sides` are train, validation or test of each, or of each split by its name; then both modes are stored.
    `columns` are label, labels, target or the manifest's own.
    """
    store = FeatureStore.create(str(folder), fingerprint_of(BACKBONE, Sampling()))
    rng = np.random.default_rng(1)
    ids = list(features)
    known = [{"default": side} if isinstance(side, str) else dict(side) for side in sides]
    types = {"label": pa.string(), "labels": pa.list_(pa.string()), "target": pa.float64()}
    corpus = {
        "video_id": pa.array(ids),
        "path": pa.array([f"/videos/{video_id}.mp4" for video_id in ids]),
        "size_bytes": pa.array([1] * len(ids), pa.int64()),
        **{name: pa.array(columns.pop(name, [None] * len(ids)), type_) for name, type_ in types.items()},
        "group": pa.array(groups or [None] * len(ids), pa.string()),
        "splits": pa.array([list(of.items()) for of in known], pa.map_(pa.string(), pa.string())),
        **{name: pa.array(values) for name, values in columns.items()},
    }
    wanted: dict[str, list[str]] = {}
    for video_id, of in zip(ids, known, strict=True):
        for mode in ("train", "eval") if len(of) > 1 else ("eval",) if "test" in of.values() else ("train",):
            wanted.setdefault(mode, []).append(video_id)
    for mode, of_mode in wanted.items():
        for start in range(0, len(of_mode), 64):
            part = of_mode[start : start + 64]
            videos = [
                VideoFeatures(
                    video_id,
                    features[video_id].astype(np.float16),
                    positions[video_id] if positions else positions_of(rng, len(features[video_id])),
                    GEOMETRY,
                )
                for video_id in part
            ]
            store.commit(store.part_name(mode, part), mode, videos)
    store.replace_videos(pa.table(corpus))
    return store


def read_clips(store: FeatureStore, mode: str) -> ClipFeatures:
    """All stored clips of one mode, in the order of the ids."""
    return StoredClips(store, mode).read()
