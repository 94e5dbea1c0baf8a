"""Plans the clips of a video: a pure function of its id, its geometry, the mode and the seed.

A clip is one spatio-temporal crop: a few frames evenly spaced in time, all cropped to the same box. The plan
holds the times, the box and, in mode `augmented`, the appearance; `decoding` reads the pixels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from scale_ray.config import Sampling

MODES = ("train", "augmented", "eval")

POSITION_FIELDS = ("flip", "y0", "x0", "y1", "x1", "t0", "t1")

# Attempts to draw a box that fits into the frame, as in torchvision's RandomResizedCrop.
_BOX_ATTEMPTS = 10

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class VideoGeometry:
    """The geometry of a video as displayed: size, duration and frames per second.

    The size is that of the frames turned as their display matrix says and with square pixels: if pixels are not
    square, the width before turning is that of the decoded frame times the pixel aspect.
    """

    height_px: int
    width_px: int
    duration_s: float
    fps: float


@dataclass(frozen=True)
class Appearance:
    """The changes that an augmented clip applies to all its frames.

    `jitter` lists (property, amount) in the order of application: brightness, contrast and saturation are factors
    (1 changes nothing), hue is in turns. `blur_px` is the sigma of the Gaussian blur in pixels of the displayed
    frame, 0 for no blur; the options give it in pixels of a frame of which the short side is `blur_short_px`.
    """

    jitter: tuple[tuple[str, float], ...]
    grey: bool
    blur_px: float


@dataclass(frozen=True)
class Clip:
    """One clip of a plan.

    `times_s` are seconds after the video's first frame; `box_px` is `(y0, x0, y1, x1)` in whole pixels of the
    displayed frame.
    """

    times_s: tuple[float, ...]
    box_px: Box
    flipped: bool
    appearance: Appearance | None = None


def plan_clips(video_id: str, mode: str, geometry: VideoGeometry, sampling: Sampling) -> list[Clip]:
    """Plan the clips of a video, in order; the same arguments give the same clips on every machine.

    Modes `train` and `augmented` draw `sampling.clips` clips with a random start, box and flip: in `train` a
    square of a randomly scaled frame, in `augmented` a box of random area and aspect with random colour changes.
    Mode `eval` takes `eval_times` evenly spaced starts, each with `eval_crops` boxes along the long side of the
    frame. A video shorter than one span repeats its last frame.

    Differs from the paper's release: times are in seconds instead of frame numbers, so that any frame rate
    works, and boxes are in whole pixels of the video's own frames as displayed, so that a stored position is
    exactly the crop that was used.
    """
    latest_start_s = max(geometry.duration_s - sampling.span_s, 0.0)
    if mode == "eval":
        return [
            Clip(
                _frame_times(latest_start_s * time / sampling.eval_times, sampling),
                _box_along_long_side(crop, sampling.eval_crops, geometry),
                flipped=False,
            )
            for time in range(sampling.eval_times)
            for crop in range(sampling.eval_crops)
        ]
    assert mode in MODES, f"unknown mode {mode!r}"
    generator = _generator(video_id, mode, sampling.sampling_seed)
    draws = generator.random((sampling.clips, 5 if mode == "train" else 13 + 2 * _BOX_ATTEMPTS)).tolist()
    return [_random_clip(draw, mode, latest_start_s, geometry, sampling) for draw in draws]


def _generator(video_id: str, mode: str, seed: int) -> np.random.Generator:
    """A counter-based generator, keyed by seed, mode and video: videos share no random state."""
    digest = hashlib.blake2b(f"{seed}\0{mode}\0{video_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _random_clip(
    draw: list[float], mode: str, latest_start_s: float, geometry: VideoGeometry, sampling: Sampling
) -> Clip:
    if mode == "train":
        start, scale, top, left, flip = draw
        box = _scaled_square(scale, top, left, geometry, sampling)
        return Clip(_frame_times(start * latest_start_s, sampling), box, flipped=flip < sampling.flip_probability)
    start, top, left, flip, *rest = draw
    appearance_draws, box_draws = rest[:9], rest[9:]
    return Clip(
        _frame_times(start * latest_start_s, sampling),
        _resized_crop(box_draws, top, left, geometry, sampling),
        flipped=flip < sampling.flip_probability,
        appearance=_appearance(appearance_draws, geometry, sampling),
    )


def _scaled_square(scale: float, top: float, left: float, geometry: VideoGeometry, sampling: Sampling) -> Box:
    """A random square of `crop_px`, on the frame scaled to a random short side; in pixels of the displayed frame."""
    num_scales = sampling.scale_max_px - sampling.scale_min_px + 1
    short_px = sampling.scale_min_px + int(scale * num_scales)
    # Size of one pixel of the scaled frame, in pixels of the displayed frame.
    pixel_size = min(geometry.height_px, geometry.width_px) / short_px
    y0 = pixel_size * _offset(top, round(geometry.height_px / pixel_size), sampling.crop_px)
    x0 = pixel_size * _offset(left, round(geometry.width_px / pixel_size), sampling.crop_px)
    size = pixel_size * sampling.crop_px
    return _even_corner(_whole_pixels(y0, x0, y0 + size, x0 + size, geometry))


def _resized_crop(draws: list[float], top: float, left: float, geometry: VideoGeometry, sampling: Sampling) -> Box:
    """A box of random area and aspect; if no attempt fits, the largest central box within `aspect_max`."""
    frame_h, frame_w = geometry.height_px, geometry.width_px
    max_log_aspect = math.log(sampling.aspect_max)
    for attempt in range(_BOX_ATTEMPTS):
        area_draw, aspect_draw = draws[2 * attempt : 2 * attempt + 2]
        area = frame_h * frame_w * (sampling.area_min + area_draw * (sampling.area_max - sampling.area_min))
        aspect = math.exp((2 * aspect_draw - 1) * max_log_aspect)  # width over height
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= frame_w and 0 < height <= frame_h:
            y0, x0 = _offset(top, frame_h, height), _offset(left, frame_w, width)
            return _even_corner((y0, x0, y0 + height, x0 + width))
    width = min(frame_w, round(frame_h * sampling.aspect_max))
    height = min(frame_h, round(frame_w * sampling.aspect_max))
    y0, x0 = (frame_h - height) // 2, (frame_w - width) // 2
    return (y0, x0, y0 + height, x0 + width)


def _appearance(draws: list[float], geometry: VideoGeometry, sampling: Sampling) -> Appearance:
    """Draw colour jitter (in random order), grey and blur, each with its own probability."""
    jittered, brightness, contrast, saturation, hue, order, grey, blurred, sigma = draws
    jitter: list[tuple[str, float]] = []
    if jittered < sampling.jitter_probability:
        amounts = {
            "brightness": 1 + (2 * brightness - 1) * sampling.jitter,
            "contrast": 1 + (2 * contrast - 1) * sampling.jitter,
            "saturation": 1 + (2 * saturation - 1) * sampling.jitter,
            "hue": (2 * hue - 1) * sampling.jitter_hue,
        }
        permutation = int(order * math.factorial(len(amounts)))
        remaining = list(amounts)
        while remaining:
            permutation, index = divmod(permutation, len(remaining))
            name = remaining.pop(index)
            jitter.append((name, amounts[name]))
    blur_px = sampling.blur_min_px + sigma * (sampling.blur_max_px - sampling.blur_min_px)
    blur_px *= min(geometry.height_px, geometry.width_px) / sampling.blur_short_px
    return Appearance(
        tuple(jitter),
        grey=grey < sampling.grey_probability,
        blur_px=blur_px if blurred < sampling.blur_probability else 0.0,
    )


def _offset(draw: float, length_px: int, crop_px: int) -> int:
    return int(draw * (length_px - crop_px + 1))


def _frame_times(start_s: float, sampling: Sampling) -> tuple[float, ...]:
    """Times spaced evenly over [start, start + span - 1 frame], both ends included, as in the paper's release."""
    last_offset_s = (sampling.frames * sampling.stride - 1) / sampling.fps
    num_steps = max(sampling.frames - 1, 1)
    return tuple(start_s + last_offset_s * frame / num_steps for frame in range(sampling.frames))


def _box_along_long_side(crop: int, num_crops: int, geometry: VideoGeometry) -> Box:
    """The square number `crop` of `num_crops` that are spaced evenly along the long side; one alone is centred."""
    short_px = min(geometry.height_px, geometry.width_px)
    fraction = crop / (num_crops - 1) if num_crops > 1 else 0.5
    y0 = (geometry.height_px - short_px) * fraction
    x0 = (geometry.width_px - short_px) * fraction
    return _whole_pixels(y0, x0, y0 + short_px, x0 + short_px, geometry)


def _even_corner(box: Box) -> Box:
    """The box moved by at most one pixel, to an even corner, where most pixel formats have a colour sample."""
    y0, x0, y1, x1 = box
    return (y0 - y0 % 2, x0 - x0 % 2, y1 - y0 % 2, x1 - x0 % 2)


def _whole_pixels(y0: float, x0: float, y1: float, x1: float, geometry: VideoGeometry) -> Box:
    """The nearest non-empty box of whole pixels inside the frame."""
    height = min(max(round(y1 - y0), 1), geometry.height_px)
    width = min(max(round(x1 - x0), 1), geometry.width_px)
    top = min(max(round(y0), 0), geometry.height_px - height)
    left = min(max(round(x0), 0), geometry.width_px - width)
    return (top, left, top + height, left + width)
