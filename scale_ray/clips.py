"""Which crops: the plan of a video's clips, a pure function of its identity, the mode and the seed.

A clip is one spatio-temporal crop: a few frames evenly spaced in time, all cut to one box. The plan
says when and where; `decoding` fetches the pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from scale_ray.config import Sampling

MODES = ("train", "eval")

POSITION_FIELDS = ("flip", "y0", "x0", "y1", "x1", "t0", "t1")


@dataclass(frozen=True)
class VideoGeometry:
    """A video as it is shown (rotation applied): size in pixels, length in seconds, frames a second."""

    height_px: int
    width_px: int
    duration_s: float
    fps: float


@dataclass(frozen=True)
class Clip:
    """One clip of a plan.

    `times_s` counts from the video's first frame; the box `(y0, x0, y1, x1)` is in pixels of the shown
    frame, as floats, because it was drawn on a resized one.
    """

    times_s: tuple[float, ...]
    box_px: tuple[float, float, float, float]
    flipped: bool


def plan_clips(video_id: str, mode: str, geometry: VideoGeometry, sampling: Sampling) -> list[Clip]:
    """The clips of a video, in order: the same for the same arguments on every machine.

    Mode `train` draws `sampling.clips` clips with random start, scale, box and flip; mode `eval` lays
    `eval_times` even starts with `eval_crops` boxes along the long side each. A video shorter than one
    span repeats its last frame. Differs from the paper's release: times in seconds instead of frame
    numbers, so that any frame rate will do.
    """
    span_s = sampling.span_s
    room_s = max(geometry.duration_s - span_s, 0.0)
    if mode == "train":
        draws = _generator(video_id, mode, sampling.sampling_seed).random((sampling.clips, 5)).tolist()
        return [_random_clip(draw, room_s, geometry, sampling) for draw in draws]
    if mode == "eval":
        return [
            Clip(
                _frame_times(room_s * time / sampling.eval_times, sampling),
                _box_along_long_side(crop, sampling.eval_crops, geometry),
                flipped=False,
            )
            for time in range(sampling.eval_times)
            for crop in range(sampling.eval_crops)
        ]
    raise AssertionError(f"unknown mode {mode!r}")


def _generator(video_id: str, mode: str, seed: int) -> np.random.Generator:
    """A counter-based generator keyed by identity: no state is shared between videos."""
    digest = hashlib.blake2b(f"{seed}\0{mode}\0{video_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _random_clip(draw: list[float], room_s: float, geometry: VideoGeometry, sampling: Sampling) -> Clip:
    start, scale, top, left, flip = draw
    choices = sampling.scale_max_px - sampling.scale_min_px + 1
    short_px = sampling.scale_min_px + int(scale * choices)
    # One pixel of the resized frame, in pixels of the shown one.
    unit = min(geometry.height_px, geometry.width_px) / short_px
    y0 = _offset(top, round(geometry.height_px / unit), sampling.crop_px)
    x0 = _offset(left, round(geometry.width_px / unit), sampling.crop_px)
    box = (y0 * unit, x0 * unit, (y0 + sampling.crop_px) * unit, (x0 + sampling.crop_px) * unit)
    return Clip(_frame_times(start * room_s, sampling), box, flipped=flip < sampling.flip_probability)


def _offset(draw: float, length_px: int, crop_px: int) -> int:
    return int(draw * (length_px - crop_px + 1))


def _frame_times(start_s: float, sampling: Sampling) -> tuple[float, ...]:
    """Evenly over [start, start + span - 1 frame], as the release of the paper spaces them."""
    reach_s = (sampling.frames * sampling.stride - 1) / sampling.fps
    steps = max(sampling.frames - 1, 1)
    return tuple(start_s + reach_s * frame / steps for frame in range(sampling.frames))


def _box_along_long_side(crop: int, num_crops: int, geometry: VideoGeometry) -> tuple[float, float, float, float]:
    side = float(min(geometry.height_px, geometry.width_px))
    along = crop / (num_crops - 1) if num_crops > 1 else 0.5
    y0 = (geometry.height_px - side) * along
    x0 = (geometry.width_px - side) * along
    return (y0, x0, y0 + side, x0 + side)
