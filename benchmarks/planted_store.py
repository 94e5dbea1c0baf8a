"""A store of invented features whose classes only a set of clips can tell, so that a training's settings matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from scale_ray.clips import VideoGeometry
from scale_ray.config import Sampling
from scale_ray.store import FeatureStore, VideoFeatures, fingerprint_of

GEOMETRY = VideoGeometry(240, 320, 8.0, 30.0)
SCENES, CLIPS, WIDTH, SHARD_VIDEOS = 3, 16, 16, 256


def make_planted_store(folder: Path, num_videos: int, noise: float, seed: int = 0) -> FeatureStore:
    """A store of training videos that show one of three scenes and then another, with labels.

    The class, `forward` or `back`, is the direction of this step around the three scenes. Every scene occurs as the
    first and the second of either class, so that it takes a clip of each scene and their times to tell. A clip's
    feature is the vector of its scene, of 16 normal numbers, and `noise` times as much of its own.
    """
    rng = np.random.default_rng(seed)
    scenes = rng.normal(size=(SCENES, WIDTH))
    store = FeatureStore.create(str(folder), fingerprint_of({"backbone": "none", "weights": "none"}, Sampling()))
    videos, labels = [], []
    for number in range(num_videos):
        starts_s = rng.uniform(0, 6, CLIPS)
        first, step = rng.integers(SCENES), rng.integers(1, SCENES)
        shown = np.where(starts_s < 3, first, (first + step) % SCENES)
        features = scenes[shown] + noise * rng.normal(size=(CLIPS, WIDTH))
        box_px = np.tile([0.0, 0.0, 240.0, 320.0], (CLIPS, 1))
        positions = np.column_stack([rng.choice([-1.0, 1.0], CLIPS), box_px, starts_s, starts_s + 2])
        values = (features.astype(np.float16), positions.astype(np.float32), GEOMETRY)
        videos.append(VideoFeatures(f"{number:06d}", *values))
        labels.append("forward" if step <= SCENES // 2 else "back")
    for start in range(0, num_videos, SHARD_VIDEOS):
        shard = videos[start : start + SHARD_VIDEOS]
        store.commit(store.part_name("train", [video.video_id for video in shard]), "train", shard)
    store.replace_videos(_corpus([video.video_id for video in videos], labels))
    return store


def _corpus(ids: list[str], labels: list[str]) -> pa.Table:
    def unknown(type_: pa.DataType) -> pa.Array:
        return pa.nulls(len(ids), type_)

    return pa.table(
        {
            "video_id": ids,
            "path": [f"{video_id}.mp4" for video_id in ids],
            "size_bytes": pa.array([1] * len(ids), pa.int64()),
            "start_s": unknown(pa.float64()),
            "end_s": unknown(pa.float64()),
            "label": labels,
            "labels": unknown(pa.list_(pa.string())),
            "target": unknown(pa.float64()),
            "group": unknown(pa.string()),
            "splits": pa.array([[("default", "train")]] * len(ids), pa.map_(pa.string(), pa.string())),
        }
    )
