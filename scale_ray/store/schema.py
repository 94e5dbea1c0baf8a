"""The format of a feature store: its schemas, its rows and the fingerprint of its contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from scale_ray.clips import MODES, VideoGeometry
from scale_ray.config import Sampling
from scale_ray.corpus import VIDEO_COLUMNS

GEOMETRY = pa.schema(
    [
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("duration_s", pa.float64()),
        ("fps", pa.float64()),
    ]
)
LEDGER = pa.schema(
    [
        ("video_id", pa.string()),
        ("mode", pa.string()),
        ("path", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("exception", pa.string()),
        ("attempts", pa.int32()),
    ]
)
# The columns of videos.parquet that the store itself needs; a manifest's own columns follow them.
VIDEOS = pa.schema([*list(VIDEO_COLUMNS)[:3], *GEOMETRY, *list(VIDEO_COLUMNS)[3:]])


_SHARED = ("frames", "stride", "fps")
_RANDOM = (*_SHARED, "clips", "flip_probability")
_APPEARANCE = ("area_", "aspect_", "jitter", "grey_", "blur_")
# The options that determine the clips of each mode.
_OPTIONS_OF_MODE = {
    "train": (*_RANDOM, "scale_min_px", "scale_max_px", "crop_px"),
    "augmented": (*_RANDOM, *(field.name for field in fields(Sampling) if field.name.startswith(_APPEARANCE))),
    "eval": (*_SHARED, "eval_times", "eval_crops"),
}
assert set(_OPTIONS_OF_MODE) == set(MODES)


@dataclass(frozen=True)
class VideoFeatures:
    """One video's part of a shard: `features` float16 (clips, D), `positions` float32 (clips, 7)."""

    video_id: str
    features: np.ndarray
    positions: np.ndarray
    geometry: VideoGeometry


@dataclass(frozen=True)
class Failure:
    """An entry of the ledger."""

    video_id: str
    mode: str
    path: str
    stage: str
    reason: str
    exception: str
    attempts: int


def fingerprint_of(backbone: Mapping[str, Any], sampling: Sampling) -> dict[str, Any]:
    """Everything that must match for features to share a store."""
    options = sampling.to_dict()
    return {
        **backbone,
        "sampling_seed": options["sampling_seed"],
        "sampling": {mode: {name: options[name] for name in names} for mode, names in _OPTIONS_OF_MODE.items()},
    }
