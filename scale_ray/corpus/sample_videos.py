"""Generates the small labelled sample videos of the demo and the tests.

A shape approaches, recedes, or does one after the other. Every size occurs in every class, so a short clip,
which shows almost one size, separates the classes less well than the whole video, which shows the order of
the sizes. Colours, shapes, paths and backgrounds are random and independent of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

WIDTH_PX, HEIGHT_PX = 160, 120
FPS = 15
DURATION_S = 8.0

# Nearness of the shape, 0 (far) to 1 (near), as a function of the elapsed fraction of the video.
MOTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "approach": lambda t: t,
    "recede": lambda t: 1 - t,
    "approach_then_recede": lambda t: 1 - np.abs(2 * t - 1),
    "recede_then_approach": lambda t: np.abs(2 * t - 1),
}

BROKEN = ("empty.mp4", "notes.txt", "cut_short.mp4")


def make_samples(folder: Path, videos_per_class: int, *, seed: int = 0, broken: bool = True) -> Iterator[Path]:
    """Write `videos_per_class` videos per motion to `folder`/MOTION, and yield each path after it is written.

    With `broken`, three more files follow that cannot be decoded: an empty file, a text file and a truncated
    video.
    """
    for motion in MOTIONS:
        (folder / motion).mkdir(parents=True, exist_ok=True)
        for number in range(videos_per_class):
            rng = np.random.default_rng([seed, list(MOTIONS).index(motion), number])
            path = folder / motion / f"{motion}_{number:03d}.mp4"
            write_video(path, render(motion, rng))
            yield path
    if broken:
        intact = folder / "approach" / "approach_000.mp4"
        contents = {
            "empty.mp4": b"",
            "notes.txt": b"These are sample videos.\n",
            "cut_short.mp4": intact.read_bytes()[: intact.stat().st_size // 2],
        }
        for name in BROKEN:
            path = folder / "approach" / name
            path.write_bytes(contents[name])
            yield path


def render(motion: str, rng: np.random.Generator) -> np.ndarray:
    """Render the RGB frames of one video: uint8 (frames, HEIGHT_PX, WIDTH_PX, 3)."""
    num_frames = round(DURATION_S * FPS)
    elapsed = np.linspace(0, 1, num_frames)
    nearness = MOTIONS[motion](elapsed)
    smallest, largest = rng.uniform(0.06, 0.1), rng.uniform(0.34, 0.42)
    radius = HEIGHT_PX * (smallest + (largest - smallest) * nearness)
    # The shape drifts slowly around the centre, so that its place in the frame does not depend on the class.
    phase, turns = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.3, 0.8, 2)
    centre_x = WIDTH_PX / 2 + 14 * np.sin(phase[0] + 2 * np.pi * turns[0] * elapsed)
    centre_y = HEIGHT_PX / 2 + 8 * np.sin(phase[1] + 2 * np.pi * turns[1] * elapsed)

    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.float32)
    background = _background(rng, y, x)
    colour = rng.uniform(200, 255, 3)
    corner_power = rng.choice([1.0, 2.0, 6.0])  # a diamond, a disc, almost a square
    frames = np.empty((num_frames, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    for index in range(num_frames):
        horizontal = np.abs((x - centre_x[index]) / radius[index]) ** corner_power
        vertical = np.abs((y - centre_y[index]) / radius[index]) ** corner_power
        inside = (horizontal + vertical <= 1)[..., None]
        frames[index] = np.where(inside, colour, background)
    return frames


def _background(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    waves = np.sin(x * rng.uniform(0.02, 0.12) + y * rng.uniform(0.02, 0.12) + rng.uniform(0, 6))
    grain = rng.normal(0, 4, (HEIGHT_PX, WIDTH_PX))
    base = rng.uniform(60, 75, 3)
    return np.clip(base + (8 * waves + grain)[..., None], 0, 255)


def write_video(path: Path, frames: np.ndarray, *, fps: int = FPS, codec: str = "libx264") -> None:
    """Encode RGB frames, uint8 (frames, height, width, 3), as a video file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"preset": "veryfast", "threads": "1"})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
