"""Which crops: the plan of a video's clips, a pure function of its identity, the mode and the seed.

A clip is one spatio-temporal crop: a few frames evenly spaced in time, all cut to one box. The plan
says when, where and, in mode `augmented`, how it looks; `decoding` fetches the pixels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from scale_ray.config import Sampling

MODES = ("train", "augmented", "eval")

POSITION_FIELDS = ("flip", "y0", "x0", "y1", "x1", "t0", "t1")

# Attempts at a box of the drawn area and aspect that fits into the frame, as torchvision makes.
_BOX_ATTEMPTS = 10

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class VideoGeometry:
    """A video as it is shown (rotation applied): size in pixels, length in seconds, frames a second."""

    height_px: int
    width_px: int
    duration_s: float
    fps: float


@dataclass(frozen=True)
class Appearance:
    """How all frames of an augmented clip look.

    `jitter` lists (property, amount) in the order in which they apply: brightness, contrast and saturation
    as factors (1 changes nothing), hue in turns. `blur_px` is the Gaussian's sigma in pixels of the shown
    frame, 0 for none.
    """

    jitter: tuple[tuple[str, float], ...]
    grey: bool
    blur_px: float


@dataclass(frozen=True)
class Clip:
    """One clip of a plan.

    `times_s` counts from the video's first frame; the box `(y0, x0, y1, x1)` is in whole pixels of the
    shown frame.
    """

    times_s: tuple[float, ...]
    box_px: Box
    flipped: bool
    appearance: Appearance | None = None


def plan_clips(video_id: str, mode: str, geometry: VideoGeometry, sampling: Sampling) -> list[Clip]:
    """The clips of a video, in order: the same for the same arguments on every machine.

    Modes `train` and `augmented` draw `sampling.clips` clips with random start, box and flip: `train` a
    square of a frame scaled at random, `augmented` a box of random area and aspect, whose colours change.
    Mode `eval` lays `eval_times` even starts with `eval_crops` boxes along the long side each. A video
    shorter than one span repeats its last frame. Differs from the paper's release: times in seconds
    instead of frame numbers, so that any frame rate will do, and boxes in whole pixels of the video's own
    frames, so that a stored position is exactly what was cut.
    """
    room_s = max(geometry.duration_s - sampling.span_s, 0.0)
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
    assert mode in MODES, f"unknown mode {mode!r}"
    generator = _generator(video_id, mode, sampling.sampling_seed)
    draws = generator.random((sampling.clips, 5 if mode == "train" else 13 + 2 * _BOX_ATTEMPTS)).tolist()
    return [_random_clip(draw, mode, room_s, geometry, sampling) for draw in draws]


def _generator(video_id: str, mode: str, seed: int) -> np.random.Generator:
    """A counter-based generator keyed by identity: no state is shared between videos."""
    digest = hashlib.blake2b(f"{seed}\0{mode}\0{video_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _random_clip(draw: list[float], mode: str, room_s: float, geometry: VideoGeometry, sampling: Sampling) -> Clip:
    if mode == "train":
        start, scale, top, left, flip = draw
        box = _scaled_square(scale, top, left, geometry, sampling)
        return Clip(_frame_times(start * room_s, sampling), box, flipped=flip < sampling.flip_probability)
    start, top, left, flip, *rest = draw
    looks, shapes = rest[:9], rest[9:]
    return Clip(
        _frame_times(start * room_s, sampling),
        _resized_crop(shapes, top, left, geometry, sampling),
        flipped=flip < sampling.flip_probability,
        appearance=_appearance(looks, sampling),
    )


def _scaled_square(scale: float, top: float, left: float, geometry: VideoGeometry, sampling: Sampling) -> Box:
    """A random square of `crop_px` on the frame scaled to a random short side."""
    choices = sampling.scale_max_px - sampling.scale_min_px + 1
    short_px = sampling.scale_min_px + int(scale * choices)
    # One pixel of the scaled frame, in pixels of the shown one.
    unit = min(geometry.height_px, geometry.width_px) / short_px
    y0 = unit * _offset(top, round(geometry.height_px / unit), sampling.crop_px)
    x0 = unit * _offset(left, round(geometry.width_px / unit), sampling.crop_px)
    side = unit * sampling.crop_px
    return _even_corner(_whole_pixels(y0, x0, y0 + side, x0 + side, geometry))


def _resized_crop(shapes: list[float], top: float, left: float, geometry: VideoGeometry, sampling: Sampling) -> Box:
    """A box of random area and aspect; where none fits, the central one of the nearest aspect."""
    frame_h, frame_w = geometry.height_px, geometry.width_px
    reach = math.log(sampling.aspect_max)
    for attempt in range(_BOX_ATTEMPTS):
        share, tilt = shapes[2 * attempt : 2 * attempt + 2]
        area = frame_h * frame_w * (sampling.area_min + share * (sampling.area_max - sampling.area_min))
        aspect = math.exp((2 * tilt - 1) * reach)  # width over height
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= frame_w and 0 < height <= frame_h:
            y0, x0 = _offset(top, frame_h, height), _offset(left, frame_w, width)
            return _even_corner((y0, x0, y0 + height, x0 + width))
    width = min(frame_w, round(frame_h * sampling.aspect_max))
    height = min(frame_h, round(frame_w * sampling.aspect_max))
    y0, x0 = (frame_h - height) // 2, (frame_w - width) // 2
    return (y0, x0, y0 + height, x0 + width)


def _appearance(draw: list[float], sampling: Sampling) -> Appearance:
    """Colour jitter (in random order), grey and blur, each with its probability."""
    jittered, brightness, contrast, saturation, hue, order, grey, blurred, sigma = draw
    jitter: list[tuple[str, float]] = []
    if jittered < sampling.jitter_probability:
        amounts = {
            "brightness": 1 + (2 * brightness - 1) * sampling.jitter,
            "contrast": 1 + (2 * contrast - 1) * sampling.jitter,
            "saturation": 1 + (2 * saturation - 1) * sampling.jitter,
            "hue": (2 * hue - 1) * sampling.jitter_hue,
        }
        number = int(order * math.factorial(len(amounts)))
        left = list(amounts)
        while left:
            number, which = divmod(number, len(left))
            name = left.pop(which)
            jitter.append((name, amounts[name]))
    blur_px = sampling.blur_min_px + sigma * (sampling.blur_max_px - sampling.blur_min_px)
    return Appearance(
        tuple(jitter),
        grey=grey < sampling.grey_probability,
        blur_px=blur_px if blurred < sampling.blur_probability else 0.0,
    )


def _offset(draw: float, length_px: int, crop_px: int) -> int:
    return int(draw * (length_px - crop_px + 1))


def _frame_times(start_s: float, sampling: Sampling) -> tuple[float, ...]:
    """Evenly over [start, start + span - 1 frame], as the release of the paper spaces them."""
    reach_s = (sampling.frames * sampling.stride - 1) / sampling.fps
    steps = max(sampling.frames - 1, 1)
    return tuple(start_s + reach_s * frame / steps for frame in range(sampling.frames))


def _box_along_long_side(crop: int, num_crops: int, geometry: VideoGeometry) -> Box:
    side = min(geometry.height_px, geometry.width_px)
    along = crop / (num_crops - 1) if num_crops > 1 else 0.5
    y0 = (geometry.height_px - side) * along
    x0 = (geometry.width_px - side) * along
    return _whole_pixels(y0, x0, y0 + side, x0 + side, geometry)


def _even_corner(box: Box) -> Box:
    """A random box moved by a pixel at most, to where most formats have a sample of colour, too."""
    y0, x0, y1, x1 = box
    return (y0 - y0 % 2, x0 - x0 % 2, y1 - y0 % 2, x1 - x0 % 2)


def _whole_pixels(y0: float, x0: float, y1: float, x1: float, geometry: VideoGeometry) -> Box:
    """The nearest box of whole pixels that lies in the frame and is not empty."""
    height = min(max(round(y1 - y0), 1), geometry.height_px)
    width = min(max(round(x1 - x0), 1), geometry.width_px)
    top = min(max(round(y0), 0), geometry.height_px - height)
    left = min(max(round(x0), 0), geometry.width_px - width)
    return (top, left, top + height, left + width)
