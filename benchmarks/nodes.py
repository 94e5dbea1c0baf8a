"""Extraction on 1, 2, 4 and 8 simulated nodes: videos per second in steady state, per node, against one node.

Each node has a backbone actor that sleeps as long as a real one would compute, and decoders that make pixels, so that
the one processor under all nodes is not the limit; its use is reported. Steady state is the middle half of the results:
the actors have started, and none has run out of work. What is measured is what many nodes add: Ray's scheduling, the
blocks, the driver's collecting and committing.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.update(
    {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
)

import placement
import psutil
import ray
import ray.cluster_utils
import torch
from common import folder_of, parser, report
from placement import SAMPLING, Waiting, made_blocks

from scale_ray.config import Cluster, CorpusOptions, Extraction
from scale_ray.corpus.corpus import read_corpus
from scale_ray.distributed import stream as ray_stream
from scale_ray.distributed.cluster import connected
from scale_ray.distributed.resources import ClusterSize
from scale_ray.extraction import ExtractionRun, Target
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.lease import write_lease
from scale_ray.store.schema import fingerprint_of

# Ray's workers cannot import from this folder.
ray.cloudpickle.register_pickle_by_value(placement)

INPUT_PX = 32
STORE_BYTES = 200 * 2**20


class Steady(NamedTuple):
    """The middle half of an extraction: its rate, and the processor's use, as a fraction of all cores."""

    videos_per_s: float
    processor: float


class Progress:
    """Takes the place of the progress display; notes when results arrive, and the seconds of all cores so far."""

    def __init__(self) -> None:
        self.arrived: list[tuple[float, float]] = []

    def advance(self, step: int) -> None:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        self.arrived += [(time.perf_counter(), busy)] * step


def steady(count: int, folder: Path, seconds: float, size: ClusterSize) -> Steady:
    """Extract some made videos into a new store."""
    videos = folder / f"videos-{count}"
    videos.mkdir(exist_ok=True)
    for number in range(count):
        (videos / f"{number:05d}.mp4").write_bytes(b"x")
    encoder = Waiting("waiting", torch.nn.Identity(), input_px=INPUT_PX, weights_id="none")
    encoder.seconds = seconds
    # Blocks of four videos, as large videos would have.
    extraction = Extraction(mode="train", block_mib=3)
    location = folder / f"store-{time.time_ns()}"
    features = FeatureStore.create(str(location), fingerprint_of(encoder.identity(), SAMPLING))
    progress = Progress()
    with write_lease(str(location)) as lease, mock.patch.object(ray_stream, "decode_block", made_blocks(seconds / 4)):
        run = ExtractionRun(read_corpus(str(videos), CorpusOptions()), [Target(encoder, features, lease)], extraction)
        ray_stream.stream_shards(run, SAMPLING, extraction, size, progress)  # type: ignore[arg-type]
        assert run.finish()[0].num_done == count
    first, last = count // 4, 3 * count // 4
    (first_s, first_busy), (last_s, last_busy) = progress.arrived[first], progress.arrived[last]
    cores = psutil.cpu_count() or 1
    return Steady((last - first) / (last_s - first_s), (last_busy - first_busy) / (last_s - first_s) / cores)


def on_nodes(num_nodes: int, videos_per_node: int, folder: Path, seconds: float) -> Steady:
    cluster = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        with connected(Cluster(address=cluster.address)) as size:
            return steady(num_nodes * videos_per_node, folder, seconds, size)
    finally:
        cluster.shutdown()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--nodes", default="1,2,4,8", help="numbers of nodes, separated by commas")
    arguments.add_argument("--seconds", type=float, default=0.5, help="seconds of the backbone per video")
    arguments.add_argument("--videos", type=int, default=160, help="videos per node")
    arguments.add_argument("--repeats", type=int, default=1, help="repetitions, interleaved")
    given = arguments.parse_args()
    numbers = [int(number) for number in given.nodes.split(",")]
    runs: dict[int, list[Steady]] = {number: [] for number in numbers}
    with folder_of(given) as folder:
        for _ in range(given.repeats):
            for number in numbers:
                runs[number].append(on_nodes(number, given.videos, folder, given.seconds))
                print(number, runs[number][-1], file=sys.stderr, flush=True)
    ideal = 1 / given.seconds
    figures: dict[str, Any] = {}
    for number, steadies in runs.items():
        rate = statistics.median(run.videos_per_s for run in steadies)
        figures[f"{number} nodes"] = {
            "videos/s, each run": [round(run.videos_per_s, 2) for run in steadies],
            "of linear, from the first": round(rate / number / (rates_of(runs[numbers[0]]) / numbers[0]), 3),
            "of what the backbones allow": round(rate / (number * ideal), 3),
            "processor, each run": [round(run.processor, 2) for run in steadies],
        }
    report("nodes", given, figures)


def rates_of(runs: list[Steady]) -> float:
    return statistics.median(run.videos_per_s for run in runs)


if __name__ == "__main__":
    main()
