"""The measurements behind a cost estimate: decoding of a few videos, and a few batches through each backbone."""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from shutil import copyfileobj
from typing import TYPE_CHECKING

from scale_ray.config import Extraction, InspectConfig, Sampling
from scale_ray.console import Console
from scale_ray.decoding import Decoder, Request, SharedPixels, video_bytes
from scale_ray.errors import VideoError
from scale_ray.files.locations import is_uri, open_input
from scale_ray.inspection.cost import BackboneTrial, DecodingTrial, Machine
from scale_ray.inspection.headers import Header, Unreadable

if TYPE_CHECKING:  # importing torch takes seconds, and reading headers does not need it
    from scale_ray.backbones import Backbone

# Batches are timed for this long, within the limits of their number.
_TIMED_S = 2.0
_MIN_BATCHES = 3
_MAX_BATCHES = 20
# On CPUs, a batch that would take longer is made smaller; there, batch size hardly affects the time per clip.
_MAX_BATCH_S = 5.0


@dataclass(frozen=True)
class Sample:
    """The measurements; `num_turned` of the decoded videos are displayed rotated by 90 or 270 degrees."""

    decoding: list[DecodingTrial]
    backbones: list[BackboneTrial]
    unreadable: list[Unreadable]
    num_turned: int

    def lines(self) -> list[str]:
        num_decoded = len({trial.video_id for trial in self.decoding})
        batches = "; ".join(
            f"{trial.name} {statistics.fmean(trial.seconds_per_clip):.2g} s per clip of {trial.input_px} px in batches "
            f"of {trial.batch_clips}"
            for trial in self.backbones
        )
        turned = f", {self.num_turned} of them rotated by a quarter turn" * bool(self.num_turned)
        lines = [f"Cost of extraction, estimated from {num_decoded} videos decoded here{turned}; {batches}:"]
        return lines + [f"  failed      {file.video_id} ({file.stage}: {file.reason})" for file in self.unreadable]


def measure_sample(
    videos: Sequence[tuple[Header, str]],
    modes: Sequence[str],
    machine: Machine,
    config: InspectConfig,
    console: Console,
) -> Sample:
    """Time the decoding of videos, given with their paths, in every mode, and time the backbones.

    Raises
    ------
    UserError
        If a backbone cannot be loaded.
    """
    from scale_ray.backbones import load_backbone

    sampling, extraction = config.sampling, config.extraction
    encoders = [load_backbone(options, sampling.frames, sampling.eval_scale) for options in config.backbone.each()]
    for note in (note for encoder in encoders for note in encoder.notes):
        console.say(note)
    sizes_px = {mode: sorted({encoder.input_px_of(mode) for encoder in encoders}) for mode in modes}
    decoding, unreadable, num_turned = try_decoding(videos, sizes_px, sampling, extraction, console)
    backbones = []
    with console.progress("time", len(encoders), "backbones") as progress:
        for encoder in encoders:
            for size_px in sorted({encoder.input_px_of(mode) for mode in modes}):
                its_modes = tuple(mode for mode in modes if encoder.input_px_of(mode) == size_px)
                backbones.append(try_backbone(encoder, its_modes, sampling.frames, extraction.batch_clips, machine))
            progress.advance(1)
    return Sample(decoding, backbones, unreadable, num_turned)


def available_cores() -> int:
    """CPU cores available to this process: the minimum of its affinity mask and a container's CPU limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(min(cores, int(quota) // int(period)), 1)


def available_gpus() -> int:
    """Number of CUDA GPUs visible to this process."""
    import torch

    return torch.cuda.device_count()


def spread_sample(headers: Sequence[Header], count: int, seed: int) -> list[Header]:
    """Draw `count` videos spread over all durations: sorted by duration, one from each of `count` equal parts."""
    ordered = sorted(headers, key=lambda header: (header.duration_s or 0.0, header.video_id))
    count = min(count, len(ordered))
    generator = random.Random(seed)
    bounds = [number * len(ordered) // max(count, 1) for number in range(count + 1)]
    return [ordered[generator.randrange(low, high)] for low, high in pairwise(bounds)]


def try_decoding(
    videos: Sequence[tuple[Header, str]],
    sizes_px: Mapping[str, Sequence[int]],
    sampling: Sampling,
    extraction: Extraction,
    console: Console,
) -> tuple[list[DecodingTrial], list[Unreadable], int]:
    """Decode videos, given with their paths, one at a time in every mode, in the same way as an extraction.

    `sizes_px` are the input sizes per mode.

    Returns the timings, the videos that failed, and the number of decoded videos that are displayed rotated by
    90 or 270 degrees.
    """
    trials: list[DecodingTrial] = []
    unreadable: list[Unreadable] = []
    num_turned, is_warm = 0, False
    pixels = SharedPixels(max(video_bytes(mode, sampling, sizes) for mode, sizes in sizes_px.items()))
    with (
        console.progress("sample", len(videos), "videos") as progress,
        Decoder(timeout_s=extraction.decode_timeout_s, memory_gib=extraction.decode_memory_gib) as decoder,
    ):
        for header, path in videos:
            try:
                with _local(path) as (local_path, read_s):
                    for mode, sizes in sizes_px.items():
                        offsets = accumulate((video_bytes(mode, sampling, [size_px]) for size_px in sizes), initial=0)
                        request = Request(
                            local_path,
                            header.video_id,
                            mode,
                            sampling,
                            tuple(sizes),
                            tuple(offsets)[:-1],
                            header.start_s,
                            header.end_s,
                        )
                        if not is_warm:  # the first call starts the process and loads its libraries
                            decoder.decode(request, pixels)
                            is_warm = True
                        started_s = time.perf_counter()
                        decoded = decoder.decode(request, pixels)
                        trials.append(DecodingTrial(header.video_id, mode, time.perf_counter() - started_s, read_s))
                displayed_px = (decoded.geometry.width_px, decoded.geometry.height_px)
                num_turned += displayed_px != (header.width_px, header.height_px) == displayed_px[::-1]
            except VideoError as error:
                unreadable.append(Unreadable(header.video_id, path, error.stage, error.reason))
            except OSError as error:
                unreadable.append(Unreadable(header.video_id, path, "open", str(error.strerror or error)))
            progress.advance(1)
    return trials, unreadable, num_turned


@contextmanager
def _local(path: str) -> Iterator[tuple[str, float | None]]:
    """A local path of the file, and the seconds to fetch it; None for a local file.

    Reading a local file is not timed, since it may already be in the operating system's cache.
    """
    if not is_uri(path):
        yield path, None
        return
    with tempfile.NamedTemporaryFile() as copy:
        started_s = time.perf_counter()
        with open_input(path) as file:
            copyfileobj(file, copy, 2**20)
        copy.flush()
        yield copy.name, time.perf_counter() - started_s


def try_backbone(
    encoder: Backbone, modes: tuple[str, ...], num_frames: int, batch_clips: int, machine: Machine
) -> BackboneTrial:
    """Time batches of black clips through a backbone on one of the machine's devices, at the input size of `modes`."""
    import torch

    size_px = encoder.input_px_of(modes[0])

    def seconds_per_clip(num_clips: int) -> tuple[float, float]:
        """Wall-clock seconds and core-seconds."""
        clips = torch.zeros((num_clips, num_frames, size_px, size_px, 3), dtype=torch.uint8)
        started_s, started_core_s = time.perf_counter(), time.process_time()
        encoder(clips.to(machine.device)).cpu()  # waits for the GPU
        return (time.perf_counter() - started_s) / num_clips, (time.process_time() - started_core_s) / num_clips

    threads_before = torch.get_num_threads()
    if machine.device == "cpu":
        torch.set_num_threads(machine.threads)
    try:
        encoder.to(machine.device)
        feature_width = encoder.feature_width(num_frames)  # also serves as the warm-up
        if machine.device == "cpu":
            batch_clips = min(batch_clips, max(int(_MAX_BATCH_S / min(seconds_per_clip(1)[0] for _ in range(2))), 1))
        seconds_per_clip(batch_clips)
        timings: list[tuple[float, float]] = []
        started_s = time.perf_counter()
        while len(timings) < _MIN_BATCHES or (
            len(timings) < _MAX_BATCHES and time.perf_counter() - started_s < _TIMED_S
        ):
            timings.append(seconds_per_clip(batch_clips))
    finally:
        torch.set_num_threads(threads_before)
    return BackboneTrial(
        encoder.name,
        size_px,
        modes,
        feature_width,
        batch_clips,
        [wall_s for wall_s, _ in timings],
        [core_s for _, core_s in timings],
    )
