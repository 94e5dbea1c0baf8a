"""Compares the frames that `scale_ray.decoding` delivers with those of the command line program FFmpeg.

Every file of a folder is decoded by FFmpeg from its beginning to its end. Then `decode_clips` is asked for frames at
many times: spread over the video, a few far apart (which makes it seek), and those of real plans. Each delivered frame
is recognised by its brightness among FFmpeg's frames, reduced to 48 x 48 and turned as FFmpeg shows them. Expected is
the last frame whose time stamp is not later than the time asked for. If FFmpeg's stamps do not increase, frames are
counted instead: number floor(rate * time). A frame that looks the same as the expected one counts as the expected one.

FFmpeg is looked for in the package `imageio_ffmpeg`, which holds a static build; `--ffmpeg` names another one.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import made_videos
import numpy as np
from common import hardware

from scale_ray.clips import MODES, Clip, VideoGeometry, plan_clips
from scale_ray.config import Sampling
from scale_ray.decoding import decode, open_video
from scale_ray.errors import VideoError

SIDE_PX = 48
# Mean difference of brightness, in levels of 255, above which a frame is none of FFmpeg's.
OTHER_PICTURE = 12.0
# Mean difference of colours above which they are others. Means of 4 x 4 pixels are compared: where FFmpeg converts to
# RGB before it turns or resizes, it interpolates colours differently.
OTHER_COLOURS = 6.0
# A frame counts as the expected one if it differs from it by hardly more than from the most similar one.
MARGIN, RELATIVE_MARGIN = 0.1, 0.1
# A frame that differs by less is the expected one, whatever the others look like.
EQUAL = 0.3
# Frames are first looked for this far from the expected one.
WINDOW = 90
# Two clocks may round differently: either neighbour is right this close to the beginning of a frame.
ROUNDING_S = 2e-3
TIME_LIMIT_S = 300

Planner = Callable[[str, str, VideoGeometry, Sampling], list[Clip]]


@dataclass(frozen=True)
class Reference:
    """FFmpeg's frames, uint8 (frames, 48, 48, 3), and the times at which they are shown, seconds from the first.

    `brightness`: float32 (frames, 48 x 48).
    """

    frames: np.ndarray
    brightness: np.ndarray
    times_s: np.ndarray
    rate: float
    clock: str
    end_s: float


@dataclass
class Comparison:
    """What was found in one file. `off` counts frames by distance from the expected frame, in frames."""

    file: str
    format: str = ""
    refused: str = ""
    ffmpeg_failed: str = ""
    num_ffmpeg: int = 0
    num_pyav: int = 0
    clock: str = ""
    rate: float = 0.0
    ffmpeg_end_s: float = 0.0
    duration_s: float = 0.0
    fps: float = 0.0
    asked: int = 0
    off: dict[str, int] = field(default_factory=dict)
    other_picture: int = 0
    most_off_s: float = 0.0
    colour_difference: float = 0.0
    examples: list[str] = field(default_factory=list)
    failed_plans: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        return sum(self.off.values()) + self.other_picture

    def verdict(self) -> str:
        if self.ffmpeg_failed:
            return "accepted, but FFmpeg fails" if self.num_pyav else "neither decodes"
        if self.refused:
            return "refused"
        if self.failed_plans:
            return "sometimes refused"
        if self.wrong:
            return "wrong frames"
        if abs(self.duration_s - self.ffmpeg_end_s) > max(0.1, 3 / max(self.rate, 1)):
            return "other duration"
        if self.colour_difference > OTHER_COLOURS:
            return "other colours"
        return "other number of frames" if self.num_ffmpeg != self.num_pyav else "equal"


def reference_of(ffmpeg: str, path: Path, stream: int) -> Reference:
    """Decode a stream with FFmpeg from beginning to end; RuntimeError if it has no frames."""
    filters = f"showinfo=checksum=0,scale={SIDE_PX}:{SIDE_PX}:flags=bilinear"
    with tempfile.TemporaryFile() as pixels:
        process = subprocess.run(
            [
                *(ffmpeg, "-hide_banner", "-nostdin", "-nostats", "-threads", "1", "-i", str(path)),
                *("-map", f"0:{stream}", "-vf", filters, "-fps_mode", "passthrough"),
                *("-f", "rawvideo", "-pix_fmt", "rgb24", "-"),
            ],
            stdout=pixels,
            stderr=subprocess.PIPE,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        pixels.seek(0)
        frames = np.frombuffer(pixels.read(), np.uint8)
    log = process.stderr.decode(errors="replace")
    frames = frames[: len(frames) // (SIDE_PX**2 * 3) * SIDE_PX**2 * 3].reshape(-1, SIDE_PX, SIDE_PX, 3)
    bases = re.findall(r"config in time_base: (\d+)/(\d+), frame_rate: (\d+)/(\d+)", log)
    shown = re.findall(r"\bn: *\d+ pts: *(NOPTS|-?\d+) .*?duration: *(\d+)", log)
    if not len(frames) or not bases:
        raise RuntimeError((log.strip().splitlines() or ["no message"])[-1])
    unit_s, rate = int(bases[0][0]) / int(bases[0][1]), int(bases[0][2]) / max(int(bases[0][3]), 1)
    known = np.array([np.nan if pts == "NOPTS" else int(pts) * unit_s for pts, _ in shown[: len(frames)]])
    if len(known) == len(frames) and np.all(np.diff(known) > 0):
        times_s, clock = known - known[0], "stamps"
    else:
        times_s, clock = np.arange(len(frames)) / rate, "numbers"
    usual_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    last_s = int(shown[-1][1]) * unit_s if clock == "stamps" else 0.0
    return Reference(frames, _brightness(frames), times_s, rate, clock, float(times_s[-1]) + max(usual_s, last_s))


def delivered(
    path: Path, mode: str, sampling: Sampling, planner: Planner
) -> tuple[np.ndarray, np.ndarray, VideoGeometry]:
    """Times and whole frames that `decode_clips` delivers for a plan.

    Returns float (frames,), uint8 (frames, 48, 48, 3) and the geometry. The clips of the plan are taken, with the whole
    frame instead of their boxes.
    """
    asked: list[float] = []

    def whole_frames(video_id: str, mode: str, geometry: VideoGeometry, sampling: Sampling) -> list[Clip]:
        box = (0, 0, geometry.height_px, geometry.width_px)
        clips = [Clip(clip.times_s, box, flipped=False) for clip in planner(video_id, mode, geometry, sampling)]
        asked[:] = [time_s for clip in clips for time_s in clip.times_s]
        return clips

    with mock.patch.object(decode, "plan_clips", whole_frames):
        clips = decode.decode_clips(str(path), path.name, mode, sampling, [SIDE_PX])
    return np.array(asked), clips.pixels[0].reshape(-1, SIDE_PX, SIDE_PX, 3), clips.geometry


def plans_of(path: Path, end_s: float) -> list[tuple[str, str, Sampling, Planner]]:
    """The plans that a file is tried with: their names, modes, samplings and functions."""
    draw = random.Random(path.name)

    def at(times_s: Sequence[float], clips: int) -> Planner:
        frames = len(times_s) // clips
        chosen = [
            Clip(tuple(times_s[c * frames : (c + 1) * frames]), (0, 0, 1, 1), flipped=False) for c in range(clips)
        ]
        return lambda *_: chosen

    spread = [end_s * (number + 0.5) / 128 for number in range(128)]
    plans = [("spread", "train", Sampling(clips=8, frames=16), at(spread, 8))]
    for number in range(8):
        few = sorted(draw.uniform(0, end_s) for _ in range(4))
        plans.append((f"few {number}", "train", Sampling(clips=2, frames=2), at(few, 2)))
    for mode in MODES:
        for number in range(2):
            video_id = f"{path.name}-{number}"

            def planned(_: str, mode: str, geometry: VideoGeometry, sampling: Sampling, name: str = video_id) -> Any:
                return plan_clips(name, mode, geometry, sampling)

            plans.append((f"{mode} {number}", mode, Sampling(clips=8, frames=8, stride=8), planned))
    return plans


def compare(ffmpeg: str, path: Path) -> Comparison:
    """Compare one file."""
    found = Comparison(path.name)
    try:
        with open_video(str(path)) as video:
            container, stream = video.container, video.stream
            found.format = container.format.name
            found.format += f", {stream.codec_context.name}"
            index = stream.index
            found.num_pyav = _number_of_frames(container, stream)
    except VideoError as error:
        found.refused = str(error)
        return found
    try:
        reference = reference_of(ffmpeg, path, index)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        found.ffmpeg_failed = str(error)[:200]
        return found
    found.num_ffmpeg, found.clock, found.rate = len(reference.frames), reference.clock, round(reference.rate, 3)
    found.ffmpeg_end_s = round(reference.end_s, 3)
    reasons: collections.Counter[str] = collections.Counter()
    plans = plans_of(path, reference.end_s)
    for name, mode, sampling, planner in plans:
        try:
            times_s, frames, geometry = delivered(path, mode, sampling, planner)
        except Exception as error:  # noqa: BLE001 - in a run, an exception becomes a reason as well
            reason = str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
            reasons[reason] += 1
            found.failed_plans.append(f"{name}: {reason}")
            continue
        found.duration_s, found.fps = round(geometry.duration_s, 3), round(geometry.fps, 3)
        for time_s, frame in zip(times_s, frames, strict=True):
            _check(found, reference, name, float(time_s), frame)
    if len(found.failed_plans) == len(plans):
        found.refused = reasons.most_common(1)[0][0]
        found.failed_plans = []
    return found


def _number_of_frames(container: Any, stream: Any) -> int:
    number = 0
    try:
        for packet in container.demux(stream):
            number += len(packet.decode())
    except (OSError, ValueError, VideoError):  # FFmpeg's errors are both; decoding ends there
        pass
    return number


def _check(found: Comparison, reference: Reference, plan: str, time_s: float, frame: np.ndarray) -> None:
    """Note whether a frame is that which is shown at a time."""
    found.asked += 1
    expected = max(int(np.searchsorted(reference.times_s, time_s + 1.1e-3, side="right")) - 1, 0)
    brightness = _brightness(frame[None])
    first = expected
    near = _differences(reference.brightness[expected : expected + 1], brightness)
    if (difference := near[0]) > EQUAL:
        first = max(expected - WINDOW, 0)
        near = _differences(reference.brightness[first : expected + WINDOW + 1], brightness)
        if near.min() > max(difference / 2, 1):  # perhaps it is further away
            first, near = 0, _differences(reference.brightness, brightness)
    least = near.min()
    same = first + np.flatnonzero(near <= least * (1 + RELATIVE_MARGIN) + MARGIN)
    if least > OTHER_PICTURE:
        found.other_picture += 1
        _example(found, f"{plan}: at {time_s:.3f} s none of FFmpeg's frames (difference {least:.1f})")
        return
    actual = int(same[np.abs(same - expected).argmin()])
    boundaries = reference.times_s[[expected, min(expected + 1, len(reference.times_s) - 1)]]
    if actual == expected or (abs(actual - expected) == 1 and np.abs(boundaries - time_s).min() < ROUNDING_S):
        colours = float(np.abs(_colours(reference.frames[actual]) - _colours(frame)).mean())
        found.colour_difference = round(max(found.colour_difference, colours), 2)
        return
    distance = actual - expected
    key = str(distance) if abs(distance) == 1 else "2 or more"
    found.off[key] = found.off.get(key, 0) + 1
    off_s = float(reference.times_s[actual] - reference.times_s[expected])
    if abs(off_s) > abs(found.most_off_s):
        found.most_off_s = round(off_s, 3)
    _example(found, f"{plan}: at {time_s:.3f} s expected frame {expected}, found {actual} ({off_s:+.3f} s)")


def _brightness(frames: np.ndarray) -> np.ndarray:
    """Float32 (frames, 48 x 48): the brightness of each pixel, in levels of 255."""
    return (frames.reshape(len(frames), -1, 3) @ np.float32([0.299, 0.587, 0.114])).astype(np.float32)


def _colours(frame: np.ndarray) -> np.ndarray:
    """Mean colours of squares of 4 x 4 pixels."""
    return frame.reshape(SIDE_PX // 4, 4, SIDE_PX // 4, 4, 3).mean((1, 3))


def _differences(brightness: np.ndarray, of_one: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each of several frames from one, float32 (frames,)."""
    return np.abs(brightness - of_one).mean(1)


def _example(found: Comparison, text: str) -> None:
    if len(found.examples) < 4:
        found.examples.append(text)


def table_of(found: Sequence[Comparison]) -> str:
    """The files that are not equal, as a table in Markdown."""
    lines = ["| file | verdict | frames asked | wrong | details |", "| --- | --- | --- | --- | --- |"]
    for one in found:
        if one.verdict() != "equal":
            lines.append(f"| {one.file} | {one.verdict()} | {one.asked} | {one.wrong} | {_details(one)} |")
    return "\n".join(lines)


def _details(one: Comparison) -> str:
    if one.refused or one.ffmpeg_failed:
        return one.refused or one.ffmpeg_failed
    parts = [f"off by {distance}: {number}" for distance, number in sorted(one.off.items())]
    if one.other_picture:
        parts.append(f"none of FFmpeg's frames: {one.other_picture}")
    if one.most_off_s:
        parts.append(f"up to {one.most_off_s:+g} s")
    if abs(one.duration_s - one.ffmpeg_end_s) > max(0.1, 3 / max(one.rate, 1)):
        parts.append(f"duration {one.duration_s:g} s, FFmpeg's frames end at {one.ffmpeg_end_s:g} s")
    if one.num_ffmpeg != one.num_pyav:
        parts.append(f"{one.num_pyav} frames, FFmpeg {one.num_ffmpeg}")
    if one.clock == "numbers":
        parts.append(f"FFmpeg's stamps do not increase: frames counted at {one.rate:g}/s")
    if one.colour_difference > OTHER_COLOURS:
        parts.append(f"colours differ by {one.colour_difference:g}")
    parts += one.examples[:1]
    if one.failed_plans:
        parts.append(f"{len(one.failed_plans)} plans refused, {one.failed_plans[0]}")
    return "; ".join(parts)


def files_of(folders: Sequence[Path], sample: int | None) -> list[Path]:
    files = []
    for folder in folders:
        here = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        files += here if sample is None else sorted(random.Random(0).sample(here, min(sample, len(here))))
    return files


def ffmpeg_of(given: str | None) -> str:
    if given is not None:
        return given
    try:
        import imageio_ffmpeg
    except ImportError:
        sys.exit("FFmpeg: expected --ffmpeg PROGRAM or the package imageio-ffmpeg, found neither")
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("folders", nargs="*", type=Path, help="folders of videos")
    arguments.add_argument("--make", type=Path, help="make videos of all codecs in this folder and compare them too")
    arguments.add_argument("--sample", type=int, help="number of files to draw from each folder instead of all")
    arguments.add_argument("--ffmpeg", help="the program; that of imageio_ffmpeg if not given")
    arguments.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    given = arguments.parse_args()
    ffmpeg = ffmpeg_of(given.ffmpeg)
    not_made = {} if given.make is None else made_videos.make(ffmpeg, given.make)
    files = files_of(given.folders, given.sample) + ([] if given.make is None else files_of([given.make], None))
    found = []
    for path in files:
        started = time.monotonic()
        found.append(compare(ffmpeg, path))
        verdict = found[-1].verdict()
        print(f"{time.monotonic() - started:6.1f} s  {path.name}: {verdict}", file=sys.stderr, flush=True)
        if given.out is not None:
            write(given.out, ffmpeg, found, not_made)
    print(table_of(found))
    print(json.dumps(summary_of(found), indent=1))


def summary_of(found: Sequence[Comparison]) -> dict[str, Any]:
    verdicts = collections.Counter(one.verdict() for one in found)
    return {
        "files": len(found),
        **verdicts,
        "frames compared": sum(one.asked for one in found),
        "frames off by one": sum(number for one in found for key, number in one.off.items() if key != "2 or more"),
        "frames off by more": sum(one.off.get("2 or more", 0) for one in found),
        "frames that are none of FFmpeg's": sum(one.other_picture for one in found),
    }


def write(out: Path, ffmpeg: str, found: Sequence[Comparison], not_made: dict[str, str]) -> None:
    """Write the figures so far: in full only for files that are not equal."""
    version = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    record = {
        "hardware": hardware(),
        "FFmpeg": version,
        "summary": summary_of(found),
        "equal": [f"{one.file} ({one.format})" for one in found if one.verdict() == "equal"],
        "not equal": {
            one.file: {
                "verdict": one.verdict(),
                **{key: value for key, value in asdict(one).items() if value not in ("", [], {})},
            }
            for one in found
            if one.verdict() != "equal"
        },
        "not made": not_made,
    }
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
