"""Time and memory of the probes: 10,000 videos, 8,000 for training, 16 clips of 768 numbers each, 101 classes.

    core    k-NN, retrieval, clustering and a linear probe with one seed, for all five representations in one call
    rest    every other probe in a call of its own, for all representations to which it applies
    memory  k-NN and retrieval over stores of several sizes, mapped from disk: the peak of anonymous memory (without
            mapped files, whose memory the system can reclaim)

The features are synthetic: overlapping classes, scattered clips. The aggregator has random weights, which cost the same
as trained ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from common import folder_of, parser, report

from scale_ray.aggregator.model import Aggregator
from scale_ray.clips import VideoGeometry
from scale_ray.config import AggregatorOptions, Ingest, Probing, Sampling
from scale_ray.probes.evaluation import probe_table
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures, fingerprint_of

CORE = ("knn", "retrieval", "clustering", "linear")
REST = ("lowshot", "attentive", "mlp", "finetuned")
CLIPS, WIDTH, CLASSES, VIDEOS_PER_PART = 16, 768, 101, 1000


def synthetic_store(folder: Path, num_videos: int) -> FeatureStore:
    """A store in which every fifth video is a test video; it is made once and reused."""
    location = folder / f"store-{num_videos}"
    if FeatureStore.is_store(str(location)) and len(FeatureStore(str(location)).videos()):
        return FeatureStore(str(location))
    store = FeatureStore.create(str(location), fingerprint_of({"backbone": "made up", "weights": "none"}, Sampling()))
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    ids = [f"v{number:07d}" for number in range(num_videos)]
    subsets = ["test" if number % 5 == 0 else "train" for number in range(num_videos)]
    labels = rng.integers(CLASSES, size=num_videos)
    for mode, subset in (("train", "train"), ("eval", "test")):
        rows = [number for number in range(num_videos) if subsets[number] == subset]
        for start in range(0, len(rows), VIDEOS_PER_PART):
            part = rows[start : start + VIDEOS_PER_PART]
            videos = []
            for number in part:
                centre = centres[labels[number]] + 4 * rng.standard_normal(WIDTH, np.float32)
                clips = centre + rng.standard_normal((CLIPS, WIDTH), np.float32)
                positions = np.tile([-1, 0, 0, 256, 256, 0, 2], (CLIPS, 1)).astype(np.float32)
                positions[:, 5:] += rng.uniform(0, 8, (CLIPS, 1)).astype(np.float32)
                videos.append(
                    VideoFeatures(ids[number], clips.astype(np.float16), positions, VideoGeometry(256, 340, 10.0, 30.0))
                )
            store.commit(store.part_name(mode, [video.video_id for video in videos]), mode, videos)
    corpus = {
        "video_id": ids,
        "path": [f"/nowhere/{video_id}.mp4" for video_id in ids],
        "size_bytes": [1] * num_videos,
        "start_s": pa.nulls(num_videos, pa.float64()),
        "end_s": pa.nulls(num_videos, pa.float64()),
        "label": [f"class {label}" for label in labels],
        "labels": pa.nulls(num_videos, pa.list_(pa.string())),
        "target": pa.nulls(num_videos, pa.float64()),
        "group": pa.nulls(num_videos, pa.string()),
        "splits": pa.array([[("default", subset)] for subset in subsets], pa.map_(pa.string(), pa.string())),
    }
    store.replace_videos(pa.table(corpus))
    return store


def aggregator() -> Aggregator:
    torch.manual_seed(0)
    return Aggregator(WIDTH, AggregatorOptions()).eval()


def timed(store: FeatureStore, probes: tuple[str, ...]) -> dict[str, object]:
    """Seconds of the probes in total and per representation, and the metrics."""
    began_s = last_s = time.perf_counter()
    took_s: dict[str, float] = {}

    def record(_: int, name: str) -> None:
        nonlocal last_s
        now_s = time.perf_counter()
        took_s[name], last_s = round(now_s - last_s, 1), now_s
        print(probes, name, took_s[name], file=sys.stderr, flush=True)

    table, _ = probe_table(store, [aggregator()], Probing(probes=probes), progress=record)
    total_s = time.perf_counter() - began_s
    values = {row.representation: {n: round(m.value, 3) for n, m in row.metrics.items()} for row in table.rows}
    return {"seconds": round(total_s, 1), "each": took_s, "metrics": values}


def memory_of(location: str, cache: str) -> dict[str, object]:
    """The peak of anonymous memory above its value before the probes; to be called in a fresh process."""
    peak, done = [0], threading.Event()

    def anonymous_bytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_bytes())

    store, untrained = FeatureStore(location), aggregator()
    before = anonymous_bytes()
    watcher = threading.Thread(target=watch)
    watcher.start()
    began_s = time.perf_counter()
    probe_table(store, [untrained], Probing(probes=("knn", "retrieval")), ingest=Ingest(ingest="disk", cache=cache))
    done.set()
    watcher.join()
    videos = len(store.videos())
    return {
        "videos": videos,
        "features, MiB": round(videos * CLIPS * WIDTH * 2 / 2**20),
        "memory, MiB": round((peak[0] - before) / 2**20),
        "seconds": round(time.perf_counter() - began_s, 1),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--videos", type=int, default=10_000, help="videos of the store, for the cases core and rest"
    )
    arguments.add_argument("--cases", default="core,rest,memory", help="cases to measure, separated by commas")
    arguments.add_argument("--rest", default=",".join(REST), help="probes for the case rest")
    arguments.add_argument("--sizes", default="10000,40000", help="numbers of videos of the stores for the case memory")
    arguments.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.memory_of:
        print(json.dumps(memory_of(*given.memory_of.split("|"))))
        return
    del given.memory_of
    torch.set_num_threads(2)
    figures: dict[str, object] = {}
    with folder_of(given) as folder:
        if "core" in given.cases.split(","):
            figures["core"] = timed(synthetic_store(folder, given.videos), CORE)
        if "rest" in given.cases.split(","):
            store = synthetic_store(folder, given.videos)
            figures["rest"] = {probe: timed(store, (probe,)) for probe in given.rest.split(",")}
        if "memory" in given.cases.split(","):
            runs = []
            for size in map(int, given.sizes.split(",")):
                location = synthetic_store(folder, size).location
                command = [sys.executable, __file__, "--memory-of", f"{location}|{folder / 'cache'}"]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
                print(runs[-1], file=sys.stderr, flush=True)
            figures["memory"] = runs
    report("probes", given, figures)


if __name__ == "__main__":
    main()
