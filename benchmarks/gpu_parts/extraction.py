"""The real stream: decoders on all cores, backbone actors on the GPU, a store at the end; needs Ray and PyAV.

Beside it what each side can do alone: decoding on all cores, and the forward pass. The slower one is the bottleneck.
"""

from __future__ import annotations

import importlib.util
import os

from gpu_parts.backbones import FRAMES, VARIANTS, clips_per_s
from gpu_parts.measure import Bench, GpuUsage, rounded
from scale_ray.backbones import load_backbone
from scale_ray.config import BackboneOptions, Extraction

NEEDED = {"ray": "Ray", "av": "PyAV"}
# How long the stream should run at the speed of its bottleneck.
STREAM_S = 15
CLIPS_PER_VIDEO = 16


def missing() -> list[str]:
    return [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]


def extraction(bench: Bench, precision: str, decoding_clips_per_s: float) -> dict[str, float | str]:
    """Clips per second of the stream, between its first and its last result, and of each side alone."""
    from stream import linked_videos, stream_times

    cores = len(os.sched_getaffinity(0))
    options = BackboneOptions(
        backbone="r3d_18", weights="none", input_px=32 if bench.tiny else None, precision=precision
    )
    backbone = load_backbone(options, FRAMES)
    variant = VARIANTS["float32, as it ships" if precision == "float32" else precision]
    forward = clips_per_s(load_backbone(options, FRAMES), variant, bench)
    expected = min(forward, decoding_clips_per_s)
    count = 8 if bench.tiny else int(STREAM_S * expected / CLIPS_PER_VIDEO)
    videos = linked_videos(bench.folder, count, width=320, height=240)
    store = bench.folder / f"store-{precision}"
    with GpuUsage(bench) as usage:
        times = stream_times(videos, store, backbone, Extraction(mode="train"), cores)
    stream = CLIPS_PER_VIDEO * times.videos_per_s
    return {
        "videos": count,
        "stream, clips/s": rounded(stream),
        "decoding alone on all cores, clips/s": rounded(decoding_clips_per_s),
        "forward alone, clips/s": forward,
        "stream over its bottleneck": rounded(stream / expected, 3),
        "bottleneck": "decoding" if decoding_clips_per_s < forward else "the backbone",
        "share of time that the GPU is busy, while results arrive": usage.share(times.first_at_s, times.last_at_s),
        "seconds until the first result": rounded(times.first_at_s - times.began_at_s, 3),
        "seconds in all": rounded(times.last_at_s - times.began_at_s, 3),
    }


def decoding(bench: Bench) -> float:
    """Clips per second of decoding alone, one decoder per core."""
    from stream import decoding_rate, linked_videos

    cores = len(os.sched_getaffinity(0))
    count = 4 if bench.tiny else 20 * cores
    videos = linked_videos(bench.folder, count, width=320, height=240)
    return rounded(CLIPS_PER_VIDEO * decoding_rate(videos, 32 if bench.tiny else 112, cores, count))


def run(bench: Bench) -> None:
    if lacking := missing():
        bench.record(("extraction",), lambda: f"not measured: without {' and '.join(lacking)} (benchmarks/README.md)")
        return
    rate = bench.record(("decoding alone on all cores, clips/s",), decoding, bench)
    for precision in ("float32",) if bench.tiny else ("float32", "bfloat16"):
        bench.record((f"r3d_18, {precision}",), extraction, bench, precision, rate)
