"""Writing and reading a feature store: seconds and bytes, compared with those of another checkout of this project.

    PYTHONPATH=. python benchmarks/store.py --before ../another/checkout --save

Both write a store of the same random features, then read it alternately, each time in a process of its own. The shards
are those of an extraction, and then merged ones. Ratios are those of neighbouring measurements: above 1, this checkout
is faster or smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import folder_of, parser, report

HERE = Path(__file__).resolve().parent.parent
CLIPS, WIDTH, BATCH, WINDOW_MIB = 16, 768, 256, 256


def write(location: str, videos: int, shard_videos: int) -> dict[str, float]:
    """Seconds of all commits, and MiB of the store."""
    import numpy as np

    from scale_ray.clips import VideoGeometry, plan_clips
    from scale_ray.config import Sampling
    from scale_ray.store import FeatureStore, VideoFeatures, fingerprint_of

    sampling, geometry = Sampling(), VideoGeometry(240, 320, 10.0, 30.0)
    store = FeatureStore.create(location, fingerprint_of({"backbone": "none", "weights": "none"}, sampling))
    rng, seconds, core_seconds = np.random.default_rng(0), 0.0, 0.0
    for start in range(0, videos, shard_videos):
        ids = [f"class/{number:06d}.mp4" for number in range(start, min(start + shard_videos, videos))]
        features = rng.standard_normal((len(ids), CLIPS, WIDTH), np.float32).astype(np.float16)
        shard = []
        for video_id, values in zip(ids, features, strict=True):
            plan = plan_clips(video_id, "train", geometry, sampling)
            rows = [(1 - 2 * clip.flipped, *clip.box_px, clip.times_s[0], clip.times_s[-1]) for clip in plan]
            shard.append(VideoFeatures(video_id, values, np.array(rows, np.float32), geometry))
        took = _seconds("write", partial(store.commit, store.part_name("train", ids), "train", shard))
        seconds, core_seconds = seconds + took["write, s"], core_seconds + took["write, core-s"]
    return {"write, s": seconds, "write, core-s": core_seconds, "size, MiB": store.size_bytes() / 2**20}


def merge(location: str) -> dict[str, float]:
    from scale_ray.store import FeatureStore, compact

    store = FeatureStore(location)
    return {**_seconds("compact", lambda: compact(store)), "size, MiB": store.size_bytes() / 2**20}


def read(location: str) -> dict[str, float]:
    """Seconds of each way of reading all clips; those of the pretraining's data are of one epoch."""
    import torch

    from scale_ray.clip_sets import WorkerSlice, open_source
    from scale_ray.config import Ingest, Sets
    from scale_ray.store import FeatureStore, StoredClips, verify

    torch.set_num_threads(1)
    store = FeatureStore(location)
    stored = StoredClips(store, "train")

    def epoch(mode: str) -> None:
        source = open_source(stored, Ingest(ingest=mode, window_mib=WINDOW_MIB), torch.device("cpu"))
        for _ in source.batches(WorkerSlice(BATCH, 0, 1), Sets(), seed=0, epoch=0, first_step=0):
            pass

    def rows() -> None:
        for number, part in enumerate(stored.parts):
            stored.read_rows(number, 0, len(part.rows))

    return {
        **_seconds("open", lambda: StoredClips(store, "train")),
        **_seconds("read", stored.read),
        **_seconds("read_rows", rows),
        **_seconds("read_positions", stored.read_positions),
        **_seconds("epoch from memory", lambda: epoch("memory")),
        **_seconds("epoch streamed", lambda: epoch("stream")),
        **_seconds("verify", lambda: verify(store)),
    }


def peak(location: str) -> dict[str, float]:
    """MiB of the process's largest resident set while the clips are read, above that of the libraries."""
    import resource

    from scale_ray.store import FeatureStore, StoredClips

    store = FeatureStore(location)
    store.stored_ids("train")  # loads all of pyarrow
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    StoredClips(store, "train").read()
    return {"memory of read, MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024}


def _seconds(name: str, function: Callable[[], object]) -> dict[str, float]:
    """Seconds, and seconds of all cores together, which depend less on what else the machine does."""
    began_s, began_core_s = time.perf_counter(), time.process_time()
    function()
    return {f"{name}, s": time.perf_counter() - began_s, f"{name}, core-s": time.process_time() - began_core_s}


STEPS = {"write": write, "merge": merge, "read": read, "peak": peak}


def in_checkout(checkout: Path, step: str, *values: object) -> dict[str, float]:
    """What a step measures with the package of a checkout."""
    command = [sys.executable, __file__, "--step", json.dumps([step, *values])]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def compare(checkouts: dict[str, Path], repeats: int, step: str, values: dict[str, tuple]) -> dict[str, dict]:
    """The medians of each checkout, and the median ratio of neighbouring measurements."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(repeats):
        for name, checkout in checkouts.items():
            measured[name].append(in_checkout(checkout, step, *values[name]))
            print(step, name, measured[name][-1], file=sys.stderr, flush=True)
    figures = {}
    for quantity in measured["now"][0]:
        of = {name: [round(values[quantity], 3) for values in rows] for name, rows in measured.items()}
        ratios = [before / now for before, now in zip(of.get("before", []), of["now"], strict=False)]
        medians = {name: round(statistics.median(numbers), 3) for name, numbers in of.items()}
        figures[quantity] = {**medians, **({"ratio": round(statistics.median(ratios), 2)} if ratios else {})}
    return figures


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, dict]:
    checkouts = {"before": arguments.before, "now": HERE} if arguments.before else {"now": HERE}
    at = {name: (str(folder / name),) for name in checkouts}
    created = {name: (*place, arguments.videos, arguments.shard_videos) for name, place in at.items()}
    return {
        "extracted": {
            **compare(checkouts, 1, "write", created),
            **compare(checkouts, arguments.repeats, "read", at),
            **compare(checkouts, arguments.repeats, "peak", at),
        },
        "merged": {
            **compare(checkouts, 1, "merge", at),
            **compare(checkouts, arguments.repeats, "read", at),
            **compare(checkouts, arguments.repeats, "peak", at),
        },
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--before", type=Path, help="another checkout of the project to compare with")
    arguments.add_argument("--videos", type=int, default=20_000, help="videos of the store")
    arguments.add_argument("--shard-videos", type=int, default=64, help="videos per shard before they are merged")
    arguments.add_argument("--repeats", type=int, default=3, help="measurements of each kind")
    arguments.add_argument("--step", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.step:
        step, *values = json.loads(options.step)
        print(json.dumps(STEPS[step](*values)))
        return
    with folder_of(options) as folder:
        figures = measure(folder, options)
    del options.step, options.before
    report("store", options, figures)


if __name__ == "__main__":
    main()
