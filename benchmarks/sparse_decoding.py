"""Sparse decoding against one pass, a full decode, and a seek for every clip.

For a video of ten seconds, ten minutes and an hour, with a key frame every 12 and every 250 frames, the
16 clips of mode train are read in four ways:

    sparse         this project's decoder
    one pass       forward to the last wanted frame; wanted frames converted whole, then cropped and resized
    full           the same, but every frame of the file is converted, as a reader of whole videos does
    seek per clip  a seek to each clip's start; its wanted frames converted whole, then cropped and resized

Times are medians of interleaved runs, memory the peak of a process that does nothing else, both with the
same wanted frames. That the pixels are exact is checked against this project's own conversion of the
frames of a reading from start to end without any seek.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from common import folder_of, make_video, parser, report
from PIL import Image

from scale_ray.clips import Clip, plan_clips
from scale_ray.config import Sampling
from scale_ray.decoding import decode as decoding
from scale_ray.decoding.frames import FrameReader, geometry_of, opened, video_stream

SIDE_PX = 224
SAMPLING = Sampling()
LENGTHS_S = {"10 s": 10, "10 min": 600, "1 h": 3600}


def planned(path: Path) -> list[Clip]:
    with opened(str(path)) as container:
        stream = video_stream(container)
        geometry = geometry_of(str(path), stream, next(container.decode(stream)))
    return plan_clips("benchmark", "train", geometry, SAMPLING)


def cut(image: np.ndarray, clip: Clip) -> np.ndarray:
    """The usual way: a converted frame, cropped, then resized."""
    y0, x0, y1, x1 = clip.box_px
    box = Image.fromarray(image[y0:y1, x0:x1]).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    return np.asarray(box)[:, ::-1] if clip.flipped else np.asarray(box)


def shown(container, stream) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Frames with the times from which and until which they are shown."""
    held = None
    for frame in container.decode(stream):
        if held is not None:
            yield held.time, frame.time, held
        held = frame
    if held is not None:
        yield held.time, float("inf"), held


def sparse(path: Path) -> np.ndarray:
    return decoding.decode_clips(str(path), "benchmark", "train", SAMPLING, [SIDE_PX]).pixels[0]


def one_pass(path: Path, *, full: bool = False) -> np.ndarray:
    clips = planned(path)
    wanted = sorted((t, c, i) for c, clip in enumerate(clips) for i, t in enumerate(clip.times_s))
    pixels = np.empty((len(clips), SAMPLING.frames, SIDE_PX, SIDE_PX, 3), np.uint8)
    at = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for _, until_s, frame in shown(container, stream):
            image = frame.to_ndarray(format="rgb24") if full else None
            while at < len(wanted) and wanted[at][0] < until_s - 1e-4:
                _, c, i = wanted[at]
                image = frame.to_ndarray(format="rgb24") if image is None else image
                pixels[c, i] = cut(image, clips[c])
                at += 1
            if at == len(wanted) and not full:
                break
    return pixels


def full(path: Path) -> np.ndarray:
    return one_pass(path, full=True)


def seek_per_clip(path: Path) -> np.ndarray:
    clips = planned(path)
    pixels = np.empty((len(clips), SAMPLING.frames, SIDE_PX, SIDE_PX, 3), np.uint8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for c, clip in enumerate(clips):
            container.seek(int(clip.times_s[0] / stream.time_base), stream=stream, backward=True)
            at = 0
            for _, until_s, frame in shown(container, stream):
                image = None
                while at < len(clip.times_s) and clip.times_s[at] < until_s - 1e-4:
                    image = frame.to_ndarray(format="rgb24") if image is None else image
                    pixels[c, at] = cut(image, clip)
                    at += 1
                if at == len(clip.times_s):
                    break
    return pixels


WAYS = {"sparse": sparse, "one pass": one_pass, "full": full, "seek per clip": seek_per_clip}


def from_the_start(path: Path) -> np.ndarray:
    """The decoder's own conversion, but without any seek: what sparse reading must equal."""

    class Forward(FrameReader):
        def __init__(self, container, stream, *, by_stamp: bool, may_seek: bool) -> None:
            super().__init__(container, stream, by_stamp=by_stamp, may_seek=False)

    kept, decoding.FrameReader = decoding.FrameReader, Forward
    try:
        return sparse(path)
    finally:
        decoding.FrameReader = kept


def peak_mib(way: str, path: Path) -> float:
    """Peak memory of a fresh process that reads the clips in this way."""
    told = subprocess.run(
        [sys.executable, __file__, "--peak-of", way, str(path)], capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout)


def measure(path: Path, repeats: int, slow_repeats: int) -> dict:
    took_s: dict[str, list[float]] = {name: [] for name in WAYS}
    for repeat in range(repeats):
        for name, way in WAYS.items():
            if repeat >= slow_repeats and name in ("one pass", "full"):
                continue
            began_s = time.perf_counter()
            pixels = way(path)
            took_s[name].append(time.perf_counter() - began_s)
            if name == "sparse":
                ours = pixels
            elif repeat == 0:
                # Another resizer: alike, not equal.
                assert np.abs(ours.astype(int) - pixels).mean() < 8, name
    medians = {name: statistics.median(times) for name, times in took_s.items()}
    return {
        "bit-exact with reading from the start": bool(np.array_equal(ours, from_the_start(path))),
        "seconds": {name: [round(t, 4) for t in times] for name, times in took_s.items()},
        "median seconds": {name: round(t, 4) for name, t in medians.items()},
        "times faster than": {n: round(t / medians["sparse"], 2) for n, t in medians.items() if n != "sparse"},
        "peak MiB": {name: round(peak_mib(name, path), 1) for name in ("sparse", "seek per clip")},
        "clips/s": round(SAMPLING.clips / medians["sparse"], 1),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=7, help="runs of each way")
    arguments.add_argument("--slow-repeats", type=int, default=1, help="runs of the ways that read an hour whole")
    arguments.add_argument("--peak-of", nargs=2, metavar=("WAY", "VIDEO"), help="measure one way's memory and stop")
    given = arguments.parse_args()
    if given.peak_of:
        WAYS[given.peak_of[0]](Path(given.peak_of[1]))
        # Not getrusage, which remembers what the process was forked from.
        status = Path("/proc/self/status").read_text().splitlines()
        print(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))
        return
    figures: dict[str, dict] = {}
    with folder_of(given) as folder:
        for key_every in (12, 250):
            for name, length_s in LENGTHS_S.items():
                video = make_video(folder / f"{length_s}s-{key_every}.mp4", duration_s=length_s, key_every=key_every)
                slow = given.slow_repeats if length_s > 10 else given.repeats
                figures[f"{name}, key frame every {key_every}"] = measure(video, given.repeats, slow)
                print(name, key_every, figures[f"{name}, key frame every {key_every}"], file=sys.stderr, flush=True)
    for key_every in (12, 250):
        hour, ten = (figures[f"{n}, key frame every {key_every}"] for n in ("1 h", "10 min"))
        figures[f"an hour over ten minutes, key frame every {key_every}"] = {
            "seconds": round(hour["median seconds"]["sparse"] / ten["median seconds"]["sparse"], 3),
            "peak memory": round(hour["peak MiB"]["sparse"] / ten["peak MiB"]["sparse"], 3),
        }
    report("sparse_decoding", given, figures)


if __name__ == "__main__":
    main()
