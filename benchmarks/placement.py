"""Bytes between the nodes of a simulated cluster during an extraction, with Ray's defaults and as they are set now.

Several raylets on this machine are the nodes: a head without CPUs, where the driver is, and three nodes with two CPUs
each. Every one has an object store of its own, and Ray counts the bytes that it receives from others. Decoders make
pixels of real size and wait, and so does the backbone: neither takes a core, so that three nodes fit onto two cores.

Cases: `equal`, three nodes that decode and embed; `apart`, two nodes that decode and one that embeds, by labels. Each
is run with faster decoders, equal rates, and a faster backbone. `share moved` is the part of all pixels that left the
node on which they were decoded: in all, and of the last two thirds of the videos, when all actors have started.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

# Read by Ray when it is imported or started: all nodes on loopback, without a token, and metrics twice a second.
os.environ.update(
    {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "500",
    }
)

import numpy as np
import pyarrow as pa
import ray
import ray.cluster_utils
import ray.data
import torch
from common import folder_of, parser, report

from scale_ray.backbones import Backbone
from scale_ray.config import Cluster, CorpusOptions, Extraction, Sampling
from scale_ray.corpus.corpus import read_corpus
from scale_ray.decoding.decode import video_bytes
from scale_ray.distributed import stream as ray_stream
from scale_ray.distributed.cluster import connected
from scale_ray.distributed.resources import ClusterSize, StageSizes, stage_sizes
from scale_ray.extraction import ExtractionRun, Target
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.lease import write_lease
from scale_ray.store.schema import fingerprint_of

# 16 clips of 16 frames: 8.3 MB per video.
INPUT_PX = 104
SAMPLING = Sampling(crop_px=INPUT_PX, scale_min_px=INPUT_PX, scale_max_px=INPUT_PX)
PER_VIDEO = video_bytes("train", SAMPLING, [INPUT_PX])
STORE_BYTES = 300 * 2**20
# Seconds per video of a decoder and of an actor, in each of the three nodes.
RATES = {"backbone slower": (0.05, 0.1), "equal": (0.1, 0.1), "decoders slower": (0.1, 0.05)}
NODES = {
    "equal": (["a", "b", "c"], {}),
    "apart": (["cpu", "cpu", "gpu"], {"decoder_labels": "tier=cpu", "actor_labels": "tier=gpu"}),
}


class Waiting(Backbone):
    """A backbone that takes its time without taking a core."""

    seconds = 0.0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * len(pixels) / 16)
        return pixels[:, 0, ::32, ::32].flatten(1).float()


def made_blocks(seconds: float) -> Any:
    """In place of `stream.decode_block`: real blocks of made pixels."""

    def decode_block(
        block: pa.Table, *, sampling: Sampling, sizes_px: dict[str, list[int]], per_block: int, extraction: Extraction
    ) -> Iterator[pa.Table]:
        from scale_ray.extraction import decode_videos
        from scale_ray.store import GEOMETRY

        geometry = SimpleNamespace(**{field.name: 1 if pa.types.is_integer(field.type) else 1.0 for field in GEOMETRY})

        class Made:
            def decode(self, request: Any, pixels: Any) -> Any:
                time.sleep(seconds)
                start = request.offsets[0]
                np.frombuffer(memoryview(pixels.memory), np.uint8)[start : start + PER_VIDEO] = 7
                return SimpleNamespace(positions=np.zeros((16, 7), np.float32), size_bytes=1, geometry=geometry)

        yield from decode_videos(block.to_pylist(), Made(), sampling, sizes_px["train"], per_block)  # type: ignore[arg-type]

    return decode_block


@contextmanager
def nodes(tiers: list[str]) -> Iterator[ClusterSize]:
    """A head without CPUs, and a node with two for each tier; this process is connected to the head."""
    cluster = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for tier in tiers:
            cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, labels={"tier": tier})
        with connected(Cluster(address=cluster.address)) as size:
            check_count()
            yield size
    finally:
        cluster.shutdown()


def received_bytes() -> dict[str, int]:
    """Bytes that each node has received from others, by node id; as of a second ago at most."""
    counts = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        counted = [line for line in lines if line.startswith("ray_object_manager_bytes{") and 'Type="Received"' in line]
        counts[node["NodeID"]] = int(sum(float(line.rpartition(" ")[2]) for line in counted))
    return counts


def check_count() -> None:
    """Check what is counted: one transfer of a known size is."""

    def make() -> np.ndarray:
        return np.ones(20_000_000, np.uint8)

    def take(made: np.ndarray) -> int:
        return len(made)

    first, second = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU")][:2]
    made = ray.remote(make).options(label_selector={"ray.io/node-id": first}).remote()
    ray.get(ray.remote(take).options(label_selector={"ray.io/node-id": second}).remote(made))
    time.sleep(2)
    counts = received_bytes()
    assert counts[second] == sum(counts.values()), counts
    assert 20_000_000 <= counts[second] < 20_010_000, counts


class Moved(NamedTuple):
    """One extraction: what was moved, per byte of pixels, and the videos per second after the first third of them."""

    in_all: float
    after_start: float
    to_the_driver: int
    videos_per_s: float


class Progress:
    """Takes the place of the progress display; notes the time and the bytes when a third of the results is there."""

    def __init__(self, count: int) -> None:
        self._third, self._seen = count // 3, 0
        self.at_third: tuple[float, dict[str, int]] | None = None

    def advance(self, step: int) -> None:
        self._seen += step
        if self._seen >= self._third and self.at_third is None:
            self.at_third = time.perf_counter(), received_bytes()


def extraction_of(
    count: int, folder: Path, rates: tuple[float, float], options: dict[str, Any], size: ClusterSize
) -> Moved:
    """Extract some made videos into a new store."""
    videos = folder / f"videos-{count}"
    videos.mkdir(exist_ok=True)
    for number in range(count):
        (videos / f"{number:05d}.mp4").write_bytes(b"x")
    encoder = Waiting("waiting", torch.nn.Identity(), input_px=INPUT_PX, weights_id="none")
    encoder.seconds = rates[1]
    extraction = Extraction(mode="train", block_mib=16, **options)
    location = folder / f"store-{time.time_ns()}"
    features = FeatureStore.create(str(location), fingerprint_of(encoder.identity(), SAMPLING))
    progress, before = Progress(count), received_bytes()
    with write_lease(str(location)) as lease, mock.patch.object(ray_stream, "decode_block", made_blocks(rates[0])):
        run = ExtractionRun(read_corpus(str(videos), CorpusOptions()), [Target(encoder, features, lease)], extraction)
        ray_stream.stream_shards(run, SAMPLING, extraction, size, progress)  # type: ignore[arg-type]
        ended_s = time.perf_counter()
        assert run.finish()[0].num_done == count
    time.sleep(2)
    assert progress.at_third is not None
    (third_s, third), after = progress.at_third, received_bytes()
    rest = count - count // 3
    [driver] = [node["NodeID"] for node in ray.nodes() if not node["Resources"].get("CPU")]
    return Moved(
        sum(after[node] - before[node] for node in after) / (count * PER_VIDEO),
        sum(after[node] - third[node] for node in after) / (rest * PER_VIDEO),
        after[driver] - before[driver],
        rest / (ended_s - third_s),
    )


def before(size: ClusterSize, extraction: Extraction) -> StageSizes:
    """The same numbers of decoders and actors, with half the CPUs for each and Ray's number of waiting blocks."""
    return dataclasses.replace(
        stage_sizes(size, extraction), decoder_cpus=0.5, actor_resources={"num_cpus": 0.5}, may_stay=False
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--videos", type=int, default=360, help="videos of each extraction")
    arguments.add_argument("--cases", default="equal,apart", help="cases to measure, separated by commas")
    arguments.add_argument("--rates", default=",".join(RATES), help="rates to measure, separated by commas")
    arguments.add_argument("--repeats", type=int, default=3, help="repetitions of each, interleaved")
    given = arguments.parse_args()
    figures: dict[str, Any] = {"MB per video": round(PER_VIDEO / 1e6, 2)}
    with folder_of(given) as folder:
        for case in given.cases.split(","):
            tiers, options = NODES[case]
            with nodes(tiers) as size:
                for name in given.rates.split(","):
                    runs: dict[str, list[Moved]] = {"before": [], "now": []}
                    for _ in range(given.repeats):
                        for way, moved in runs.items():
                            sizes = before if way == "before" else stage_sizes
                            with mock.patch.object(ray_stream, "stage_sizes", sizes):
                                moved.append(extraction_of(given.videos, folder, RATES[name], options, size))
                            print(case, name, way, moved[-1], file=sys.stderr, flush=True)
                    figures[f"{case}, {name}"] = summary(runs)
    report("placement", given, figures)


def summary(runs: dict[str, list[Moved]]) -> dict[str, Any]:
    """The figures of all runs before and now, and the ratios of their medians."""
    listed = {
        "share moved, in all": lambda run: round(run.in_all, 3),
        "share moved, after the start": lambda run: round(run.after_start, 3),
        "MB to the driver's node": lambda run: round(run.to_the_driver / 1e6, 2),
        "videos/s": lambda run: round(run.videos_per_s, 1),
    }
    figures: dict[str, Any] = {
        name: {way: [figure(run) for run in moved] for way, moved in runs.items()} for name, figure in listed.items()
    }
    medians = {name: [statistics.median(values) for values in ways.values()] for name, ways in figures.items()}
    figures["now over before, medians"] = {
        name: round(now / earlier, 3) if earlier else None for name, (earlier, now) in medians.items()
    }
    return figures


if __name__ == "__main__":
    main()
