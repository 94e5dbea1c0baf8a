"""What the probes cost on a large store: 10,000 videos of 16 clips of 768 numbers, 101 classes, 8,000 to train on.

`core`: k-NN, retrieval, clustering and a linear probe of one seed, of all five representations in one call.
`rest`: every other probe by itself, likewise. `memory`: k-NN and retrieval over stores of several sizes that are
mapped from disk, and the most memory of their own (without mapped files, which the system takes back when it needs
room). The features are made up: classes that overlap, clips that scatter. The aggregator has random weights, which
cost the same.
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
CLIPS, WIDTH, CLASSES, VIDEOS_OF_PART = 16, 768, 101, 1000


def made_store(folder: Path, num_videos: int) -> FeatureStore:
    """One video in five is a test video; the store is made once and kept."""
    location = folder / f"store-{num_videos}"
    if FeatureStore.is_store(str(location)) and len(FeatureStore(str(location)).videos()):
        return FeatureStore(str(location))
    store = FeatureStore.create(str(location), fingerprint_of({"backbone": "made up", "weights": "none"}, Sampling()))
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    ids = [f"v{number:07d}" for number in range(num_videos)]
    sides = ["test" if number % 5 == 0 else "train" for number in range(num_videos)]
    labels = rng.integers(CLASSES, size=num_videos)
    for mode, side in (("train", "train"), ("eval", "test")):
        rows = [number for number in range(num_videos) if sides[number] == side]
        for start in range(0, len(rows), VIDEOS_OF_PART):
            part = rows[start : start + VIDEOS_OF_PART]
            videos = []
            for number in part:
                middle = centres[labels[number]] + 4 * rng.standard_normal(WIDTH, np.float32)
                clips = middle + rng.standard_normal((CLIPS, WIDTH), np.float32)
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
        "label": [f"class {label}" for label in labels],
        "labels": pa.nulls(num_videos, pa.list_(pa.string())),
        "target": pa.nulls(num_videos, pa.float64()),
        "group": pa.nulls(num_videos, pa.string()),
        "splits": pa.array([[("default", side)] for side in sides], pa.map_(pa.string(), pa.string())),
    }
    store.replace_videos(pa.table(corpus))
    return store


def aggregator() -> Aggregator:
    torch.manual_seed(0)
    return Aggregator(WIDTH, AggregatorOptions()).eval()


def timed(store: FeatureStore, probes: tuple[str, ...]) -> dict[str, object]:
    began_s = last_s = time.perf_counter()
    took_s: dict[str, float] = {}

    def told(_: int, name: str) -> None:
        nonlocal last_s
        now_s = time.perf_counter()
        took_s[name], last_s = round(now_s - last_s, 1), now_s
        print(probes, name, took_s[name], file=sys.stderr, flush=True)

    table, _ = probe_table(store, [aggregator()], Probing(probes=probes), progress=told)
    whole_s = time.perf_counter() - began_s
    shown = {row.representation: {n: round(of.value, 3) for n, of in row.metrics.items()} for row in table.rows}
    return {"seconds": round(whole_s, 1), "each": took_s, "metrics": shown}


def memory_of(location: str, cache: str) -> dict[str, object]:
    """In a process of its own: the most anonymous memory above that before the probes."""
    peak, done = [0], threading.Event()

    def anonymous_bytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_bytes())

    store, made = FeatureStore(location), aggregator()
    before = anonymous_bytes()
    watcher = threading.Thread(target=watch)
    watcher.start()
    began_s = time.perf_counter()
    probe_table(store, [made], Probing(probes=("knn", "retrieval")), ingest=Ingest(ingest="disk", cache=cache))
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
    arguments.add_argument("--videos", type=int, default=10_000, help="videos of the store")
    arguments.add_argument("--cases", default="core,rest,memory", help="of core, rest and memory")
    arguments.add_argument("--rest", default=",".join(REST), help="probes of the case rest")
    arguments.add_argument("--sizes", default="10000,40000", help="videos of the stores of the case memory")
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
            figures["core"] = timed(made_store(folder, given.videos), CORE)
        if "rest" in given.cases.split(","):
            store = made_store(folder, given.videos)
            figures["rest"] = {probe: timed(store, (probe,)) for probe in given.rest.split(",")}
        if "memory" in given.cases.split(","):
            runs = []
            for size in map(int, given.sizes.split(",")):
                location = made_store(folder, size).location
                asked = [sys.executable, __file__, "--memory-of", f"{location}|{folder / 'cache'}"]
                runs.append(json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout))
                print(runs[-1], file=sys.stderr, flush=True)
            figures["memory"] = runs
    report("probes", given, figures)


if __name__ == "__main__":
    main()
