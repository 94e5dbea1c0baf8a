"""Makes labelled videos whose class is the order of motions: no clip tells it, and no average of clips.

A video shows one textured shape, which moves four times and rests before, between and after. Its three motions are
`shake` (sideways), `pulse` (larger and smaller) and `turn` (one way and back). A video shows two of them, each twice,
in one of the six possible arrangements, such as `shake shake turn turn` or `turn shake turn shake`. So there are 3
pairs of motions, 6 arrangements of each, and 18 classes.

Why these classes:

- The arrangements of a pair differ by order (`shake shake turn turn`, `turn turn shake shake`) and by repetition (a
  motion recurs at once, or later), but all have the same motions. So the clips of a video, seen as a bag without
  times, tell the pair at best: a representation without order cannot do better than one in six within a pair, that is
  a top-1 of 0.167.
- The shape rests for longer than half of a clip between two motions, and each motion begins and ends where the shape
  rests. So what follows what leaves hardly a trace within a clip: clips of half a second (16 frames at 30 fps, stride
  1) are shorter than any motion, and few of them show parts of two.
- The columns `motions` (3 values) and `arrangement` (6 values, `first` being the motion of the pair that comes first
  in the alphabet) are further targets: what the backbone has to tell, and what only time can.

Independent of the class, and drawn before it is used: the lengths of motions and rests, frequency and strength of each
motion, the shape, its size, place, texture and colours, the background, a drift of the camera and the noise of its
sensor. All videos have the same size and frame rate. So neither geometry nor the length of a video tells anything.
Mirrored videos look like others of the same class.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

SIZE_PX, FPS = 96, 30
MOTIONS = ("pulse", "shake", "turn")
# The motion at each of the four moments: 0 for the first of the pair, 1 for the second.
ARRANGEMENTS = ((0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1), (1, 0, 1, 0), (1, 1, 0, 0))
PAIRS = tuple(combinations(MOTIONS, 2))
CLASSES = tuple((pair, arrangement) for pair in PAIRS for arrangement in ARRANGEMENTS)
# In every five videos of a class, one is for testing.
TEST_EVERY = 5


@dataclass(frozen=True)
class Composition:
    """What the class of a video is made of: its two motions, sorted, and their arrangement."""

    pair: tuple[str, str]
    arrangement: tuple[int, ...]

    @property
    def sequence(self) -> tuple[str, ...]:
        return tuple(self.pair[index] for index in self.arrangement)

    def columns(self) -> dict[str, str]:
        """The targets of a manifest."""
        return {
            "label": " ".join(self.sequence),
            "motions": " ".join(self.pair),
            "arrangement": " ".join(("first", "second")[index] for index in self.arrangement),
        }


@dataclass(frozen=True)
class Moment:
    """One motion of a video: what it is, its frames [start, end), oscillations per second and strength, 0.8 to 1.2."""

    motion: str
    start: int
    end: int
    frequency_hz: float
    strength: float


def composition_of(number: int) -> Composition:
    """The composition of video `number`: the classes in turn, so that all are equally frequent."""
    return Composition(*CLASSES[number % len(CLASSES)])


def subset_of(number: int) -> str:
    return "test" if number // len(CLASSES) % TEST_EVERY == TEST_EVERY - 1 else "train"


def timeline(number: int, seed: int = 0) -> tuple[list[Moment], int]:
    """The motions of a video in the order of time, and its number of frames. Times do not depend on the class."""
    rng = np.random.default_rng([seed, number, 0])
    moments, frame = [], _frames(rng.uniform(0.3, 0.6))
    for motion in composition_of(number).sequence:
        end = frame + _frames(rng.uniform(1.0, 1.6))
        moments.append(Moment(motion, frame, end, rng.uniform(1.7, 3.0), rng.uniform(0.8, 1.2)))
        frame = end + _frames(rng.uniform(0.3, 0.6))
    return moments, frame


def _frames(seconds: float) -> int:
    return round(seconds * FPS)


def render(number: int, seed: int = 0) -> np.ndarray:
    """The RGB frames of video `number`: uint8 (frames, SIZE_PX, SIZE_PX, 3)."""
    moments, num_frames = timeline(number, seed)
    rng = np.random.default_rng([seed, number, 1])
    place, radius, angle = _paths(moments, num_frames, rng)
    camera = _drift(num_frames, rng)
    margin = 8
    # Dark and even behind a bright shape with corners: what a video looks like must not drown what moves in it.
    background = _texture(
        rng, SIZE_PX + 2 * margin, rng.integers(4, 12), rng.uniform(60, 80) + rng.uniform(-8, 8, 3), 12
    )
    texture = _texture(rng, 64, rng.integers(3, 6), rng.uniform(170, 230, 3), 60)
    corner_power = rng.choice([1.0, 4.0, 8.0])
    noise = rng.normal(0, rng.uniform(1, 4), (4, SIZE_PX, SIZE_PX, 1)).astype(np.float32)
    frames = np.empty((num_frames, SIZE_PX, SIZE_PX, 3), np.uint8)
    for index in range(num_frames):
        dy, dx = np.rint(camera[index]).astype(int) + margin
        image = background[dy : dy + SIZE_PX, dx : dx + SIZE_PX].copy()
        _draw(image, texture, place[index] - camera[index], radius[index], angle[index], corner_power)
        # Four pictures of noise, mirrored at random: as good as new ones, and much faster.
        grain = noise[rng.integers(4)][:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        frames[index] = np.clip(image + grain, 0, 255)
    return frames


def _paths(
    moments: Sequence[Moment], num_frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (frames, 2) in pixels as (y, x), radius in pixels and angle in radians (frames,) of the shape."""
    place = np.tile(SIZE_PX / 2 + rng.uniform(-4, 4, 2), (num_frames, 1))
    radius = np.full(num_frames, SIZE_PX * rng.uniform(0.18, 0.22))
    angle = np.full(num_frames, rng.uniform(0, 2 * np.pi))
    for moment in moments:
        frames = np.arange(moment.start, moment.end)
        elapsed = (frames - moment.start) / (moment.end - moment.start)
        swing = np.sin(2 * np.pi * moment.frequency_hz * (frames - moment.start) / FPS) * rng.choice([-1, 1])
        # It begins and ends at rest, within a tenth of its time.
        swing *= moment.strength * np.clip(np.minimum(elapsed, 1 - elapsed) * 10, 0, 1)
        if moment.motion == "shake":
            place[frames, 1] += 0.16 * SIZE_PX * swing
        elif moment.motion == "pulse":
            radius[frames] *= np.exp(0.55 * swing)
        else:
            angle[frames] += 1.2 * swing
    return place, radius, angle


def _drift(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """The slow drift of the camera by up to 4 pixels: (frames, 2) as (y, x)."""
    times_s = np.arange(num_frames)[:, None] / FPS
    return rng.uniform(0, 4, 2) * np.sin(2 * np.pi * (rng.uniform(0.05, 0.2, 2) * times_s + rng.uniform(0, 1, 2)))


def _texture(rng: np.random.Generator, size_px: int, tiles: int, colour: np.ndarray, contrast: float) -> np.ndarray:
    """A smooth random pattern around a colour: float32 (size_px, size_px, 3)."""
    colours = colour + rng.uniform(-contrast, contrast, (tiles, tiles, 3))
    small = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    return np.asarray(small.resize((size_px, size_px), Image.Resampling.BICUBIC), np.float32)


def _draw(
    image: np.ndarray, texture: np.ndarray, centre: np.ndarray, radius: float, angle: float, corner_power: float
) -> None:
    """Draw the textured shape into the image."""
    reach = 1.42 * radius
    top, left = np.maximum(np.floor(centre - reach), 0).astype(int)
    bottom, right = np.minimum(np.ceil(centre + reach) + 1, SIZE_PX).astype(int)
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] - centre[0]) / radius
    x = (np.arange(left, right, dtype=np.float32)[None] - centre[1]) / radius
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = np.abs(u) ** corner_power + np.abs(v) ** corner_power <= 1
    rows, columns = (np.clip((axis + 1) * (len(texture) / 2), 0, len(texture) - 1).astype(int) for axis in (v, u))
    patch = image[top:bottom, left:right]
    patch[inside] = texture[rows[inside], columns[inside]]


def write_composed(folder: Path, number: int, seed: int = 0) -> Path:
    """Write video `number` to `folder`, unless it is there."""
    from scale_ray.corpus.sample_videos import write_video

    path = folder / f"{number:05d}.mp4"
    if not path.exists():
        unfinished = path.with_suffix(".unfinished.mp4")
        write_video(unfinished, render(number, seed), fps=FPS)
        unfinished.rename(path)
    return path


def make_composed(folder: Path, num_videos: int, *, seed: int = 0, processes: int = 1) -> Iterator[Path]:
    """Write the first `num_videos` videos to `folder`/videos, where they are missing, and yield their paths."""
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    arguments = [videos] * num_videos, range(num_videos), [seed] * num_videos
    if processes == 1:
        yield from map(write_composed, *arguments)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(write_composed, *arguments, chunksize=8)


def write_manifest(folder: Path, num_videos: int) -> Path:
    """List the first `num_videos` videos of `folder`/videos in a manifest with their targets and subsets."""
    path = folder / f"videos_{num_videos}.csv"
    rows = [
        {"path": f"videos/{number:05d}.mp4", "video_id": f"{number:05d}", "split": subset_of(number)}
        | composition_of(number).columns()
        for number in range(num_videos)
    ]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
