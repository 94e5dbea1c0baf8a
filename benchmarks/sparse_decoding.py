"""Sparse decoding compared with one pass, a full decode, and a seek for every clip.

From videos of ten seconds, ten minutes and an hour, with a key frame every 12 and every 250 frames, the 16 clips of
mode `train` are read by four methods:

    sparse         this project's decoder
    one pass       forward to the last wanted frame; wanted frames are converted whole, then cropped and resized
    full           the same, but every frame of the file is converted, as a reader of whole videos does
    seek per clip  a seek to the start of each clip; its wanted frames are converted whole, then cropped and resized

Times are medians of interleaved runs; memory is the peak of a separate process. All methods read the same frames. The
pixels of `sparse` must equal those of the same decoder when it reads the file from start to end without a seek.
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
from scale_ray.decoding import open_video, timing_of
from scale_ray.decoding.frames import FrameReader, geometry_of

INPUT_SIZE_PX = 224
SAMPLING = Sampling()
LENGTHS_S = {"10 s": 10, "10 min": 600, "1 h": 3600}


def planned(path: Path) -> list[Clip]:
    with open_video(str(path)) as video:
        geometry = geometry_of(FrameReader(video, timing_of(video), by_stamp=True, may_seek=False))
    return plan_clips("benchmark", "train", geometry, SAMPLING)


def cut(image: np.ndarray, clip: Clip) -> np.ndarray:
    """The usual method: crop a converted frame, then resize it."""
    y0, x0, y1, x1 = clip.box_px
    size = (INPUT_SIZE_PX, INPUT_SIZE_PX)
    box = Image.fromarray(image[y0:y1, x0:x1]).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(box)[:, ::-1] if clip.flipped else np.asarray(box)


def shown(container, stream) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Frames with the times at which they appear and disappear."""
    previous = None
    for frame in container.decode(stream):
        if previous is not None:
            yield previous.time, frame.time, previous
        previous = frame
    if previous is not None:
        yield previous.time, float("inf"), previous


def sparse(path: Path) -> np.ndarray:
    return decoding.decode_clips(str(path), "benchmark", "train", SAMPLING, [INPUT_SIZE_PX]).pixels[0]


def one_pass(path: Path, *, full: bool = False) -> np.ndarray:
    clips = planned(path)
    wanted = sorted((t, c, i) for c, clip in enumerate(clips) for i, t in enumerate(clip.times_s))
    pixels = np.empty((len(clips), SAMPLING.frames, INPUT_SIZE_PX, INPUT_SIZE_PX, 3), np.uint8)
    done = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for _, until_s, frame in shown(container, stream):
            image = frame.to_ndarray(format="rgb24") if full else None
            while done < len(wanted) and wanted[done][0] < until_s - 1e-4:
                _, c, i = wanted[done]
                image = frame.to_ndarray(format="rgb24") if image is None else image
                pixels[c, i] = cut(image, clips[c])
                done += 1
            if done == len(wanted) and not full:
                break
    return pixels


def full(path: Path) -> np.ndarray:
    return one_pass(path, full=True)


def seek_per_clip(path: Path) -> np.ndarray:
    clips = planned(path)
    pixels = np.empty((len(clips), SAMPLING.frames, INPUT_SIZE_PX, INPUT_SIZE_PX, 3), np.uint8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for c, clip in enumerate(clips):
            container.seek(int(clip.times_s[0] / stream.time_base), stream=stream, backward=True)
            done = 0
            for _, until_s, frame in shown(container, stream):
                image = None
                while done < len(clip.times_s) and clip.times_s[done] < until_s - 1e-4:
                    image = frame.to_ndarray(format="rgb24") if image is None else image
                    pixels[c, done] = cut(image, clip)
                    done += 1
                if done == len(clip.times_s):
                    break
    return pixels


METHODS = {"sparse": sparse, "one pass": one_pass, "full": full, "seek per clip": seek_per_clip}


def from_the_start(path: Path) -> np.ndarray:
    """The pixels of the same decoder without any seek."""

    class Forward(FrameReader):
        def __init__(self, container, stream, *, by_stamp: bool, may_seek: bool) -> None:
            super().__init__(container, stream, by_stamp=by_stamp, may_seek=False)

    original, decoding.FrameReader = decoding.FrameReader, Forward
    try:
        return sparse(path)
    finally:
        decoding.FrameReader = original


def peak_mib(method: str, path: Path) -> float:
    """Peak memory of a fresh process that reads the clips by this method."""
    process = subprocess.run(
        [sys.executable, __file__, "--peak-of", method, str(path)], capture_output=True, text=True, check=True
    )
    return json.loads(process.stdout)


def measure(path: Path, repeats: int, slow_repeats: int) -> dict:
    took_s: dict[str, list[float]] = {name: [] for name in METHODS}
    for repeat in range(repeats):
        for name, method in METHODS.items():
            if repeat >= slow_repeats and name in ("one pass", "full"):
                continue
            began_s = time.perf_counter()
            pixels = method(path)
            took_s[name].append(time.perf_counter() - began_s)
            if name == "sparse":
                ours = pixels
            elif repeat == 0:
                # Pillow resizes differently: the pixels are similar, not equal.
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
    arguments.add_argument("--repeats", type=int, default=7, help="runs of each method")
    arguments.add_argument("--slow-repeats", type=int, default=1, help="runs of one pass and full on the longer videos")
    arguments.add_argument(
        "--peak-of", nargs=2, metavar=("METHOD", "VIDEO"), help="only measure the memory of one method"
    )
    given = arguments.parse_args()
    if given.peak_of:
        METHODS[given.peak_of[0]](Path(given.peak_of[1]))
        # Not from getrusage: there, a child starts at the peak of its parent.
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
