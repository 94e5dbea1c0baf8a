"""Where the driver of an extraction saturates: planning, commits, Ray's tasks, resuming and the end of a run.

    PYTHONPATH=. python benchmarks/driver.py --before ../another/checkout --save

Nothing is decoded and no backbone runs: the videos need not exist, and features are made. Each part runs in a process
of its own, in turn with the package of another checkout if one is given. Memory is the resident set above that of the
loaded libraries.

    plan     a Parquet manifest is read and cut into shards
    commit   blocks of results, as the backbone actors return them, are read, collected and committed to local disk
    resume   the same command when 99 % of the videos are stored; then the end of that run
    stream   the stream on Ray with tasks and actors that do nothing: the cost of Ray per video
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import folder_of, parser, report

HERE = Path(__file__).resolve().parent.parent
GEOMETRY_OF_ALL = (240, 320, 10.0, 30.0)


def manifest(folder: Path, videos: int) -> str:
    """A manifest of videos that do not exist, with a label each and no split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"manifest-{videos}.parquet"
    if not path.exists():
        names = [f"class_{number % 400:03d}/video_{number:08d}.mp4" for number in range(videos)]
        labels = [f"class_{number % 400:03d}" for number in range(videos)]
        pq.write_table(pa.table({"path": [f"/no/such/folder/{name}" for name in names], "label": labels}), path)
    return str(path)


class Encoder:
    """Takes the place of a backbone, which the driver only passes on."""

    input_px = 16
    module_folder = None


@contextmanager
def opened(store: str) -> Iterator[list[Any]]:
    """The target of an extraction to a store, which is made if there is none."""
    from scale_ray.config import Sampling
    from scale_ray.extraction import Target
    from scale_ray.store import FeatureStore, fingerprint_of, repair, write_lease

    features = FeatureStore.create(store, fingerprint_of({"backbone": "none", "weights": "none"}, Sampling()))
    with write_lease(features.location) as lease:
        repair(features)
        yield [Target(Encoder(), features, lease)]  # type: ignore[arg-type]


def plan(folder: str, videos: int) -> dict[str, float]:
    """Seconds and memory per video of a new run, up to its shards."""
    from scale_ray.corpus import read_corpus
    from scale_ray.extraction import ExtractionRun

    source = manifest(Path(folder), videos)
    clock = Clock()
    corpus = read_corpus(source)
    clock.stop("read the manifest", videos)
    with opened(f"{folder}/planned-{os.getpid()}") as targets:
        clock.start()
        run = ExtractionRun(corpus, targets, _extraction())
        clock.stop("plan", videos)
        clock.figures["shards"] = len(run.shards)
        assert run.num_pending == videos
    return clock.figures


def commit(folder: str, videos: int, mode: str, clips: int, width: int, shard_videos: int) -> dict[str, float]:
    """Videos per second of the way from the blocks to the store, and the share of each step."""
    from scale_ray.corpus import read_corpus
    from scale_ray.extraction import ExtractionRun

    corpus = read_corpus(manifest(Path(folder), videos))
    extraction = _extraction(mode=mode, shard_videos=shard_videos)
    with opened(f"{folder}/committed-{os.getpid()}") as targets, ExitStack() as stack:
        run = ExtractionRun(corpus, targets, extraction)
        blocks = list(_blocks(run, clips, width))
        steps = stack.enter_context(_timed_steps())
        began_s, began_core_s = time.perf_counter(), time.process_time()
        for block in blocks:
            _take(run, block)
        took_s, core_s = time.perf_counter() - began_s, time.process_time() - began_core_s
        assert not run.incomplete()
    figures = {"videos/s": videos / took_s, "videos per core-s": videos / core_s}
    return figures | {f"share of {name}": seconds / took_s for name, seconds in steps.items()}


def resume(folder: str, videos: int, shard_videos: int) -> dict[str, float]:
    """Seconds and memory of a run that finds 99 % of the videos stored, in the store that `fill` made."""
    from scale_ray.corpus import read_corpus
    from scale_ray.extraction import ExtractionRun

    source, store = manifest(Path(folder), videos), f"{folder}/resumed-{os.getpid()}"
    shutil.copytree(_stored(folder, videos, shard_videos), store)
    clock = Clock()
    corpus = read_corpus(source)
    clock.stop("read the manifest", videos)
    with ExitStack() as stack:
        [target] = stack.enter_context(opened(store))
        clock.stop("open and repair", videos)
        run = ExtractionRun(corpus, [target], _extraction())
        clock.stop("plan", videos)
        clock.figures["pending"] = run.num_pending
        for block in _blocks(run, 2, 4):
            _take(run, block)
        clock.start()
        run.finish()
        clock.stop("finish", videos)
    return clock.figures


def stream(folder: str, videos: int, decoders: int, actors: int, per_block: int) -> dict[str, float]:
    """Videos per second of the stream on Ray if decoding and embedding cost nothing, and the cores that it uses."""
    import psutil

    from scale_ray.config import Cluster, Sampling
    from scale_ray.corpus import read_corpus
    from scale_ray.distributed import stream as ray_stream
    from scale_ray.distributed.cluster import connected
    from scale_ray.extraction import ExtractionRun

    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    from driver_stubs import EmbedNothing, decode_nothing

    ray_stream.decode_block, ray_stream.EmbedBlock = decode_nothing, EmbedNothing  # type: ignore[assignment,misc]
    corpus = read_corpus(manifest(Path(folder), videos))
    arrivals: list[float] = []
    # Pixels of which as many videos as asked for fill a block of 1 MiB: 16 clips of 16 x 16 pixels.
    sampling = Sampling(frames=2**20 // (per_block * 16 * 16 * 16 * 3))
    extraction = _extraction(decoders=decoders, actors=actors, block_mib=1)
    with opened(f"{folder}/streamed-{os.getpid()}") as targets:
        run = ExtractionRun(corpus, targets, extraction)
        with connected(Cluster(cpus=2)) as size:
            began_core_s, ray_core_s = time.process_time(), -_ray_core_s(psutil.Process())
            began_s = time.perf_counter()
            ray_stream.stream_shards(run, sampling, extraction, size, _Arrivals(arrivals))  # type: ignore[arg-type]
            took_s, core_s = time.perf_counter() - began_s, time.process_time() - began_core_s
            ray_core_s += _ray_core_s(psutil.Process())
        assert not run.incomplete()
    middle = len(arrivals) // 2
    return {
        "videos/s, with the start": videos / took_s,
        "videos/s, second half": (len(arrivals) - middle) / (arrivals[-1] - arrivals[middle]),
        "driver, cores": core_s / took_s,
        "driver, core-ms per video": 1000 * core_s / videos,
        "all processes of Ray, core-ms per video": 1000 * ray_core_s / videos,
    }


class Clock:
    """Seconds and memory of parts that follow each other; memory is what the process holds more than when it began.

    Seconds of all cores together depend less on what else the machine does.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._before = _resident_bytes()
        self.start()

    def start(self) -> None:
        self._began_s, self._began_core_s = time.perf_counter(), time.process_time()

    def stop(self, name: str, videos: int) -> None:
        self.figures[f"{name}, s"] = time.perf_counter() - self._began_s
        self.figures[f"{name}, core-s"] = time.process_time() - self._began_core_s
        self.figures[f"after {name}, bytes per video"] = (_resident_bytes() - self._before) / videos
        self.start()


def _resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _extraction(**options: Any) -> Any:
    from scale_ray.config import Extraction

    return Extraction(**{"mode": "train"} | options)


def _result_block(ids: list[str], mode: str, shard: int, clips: int, width: int, values: bytes) -> Any:
    """A block as the backbone actors return it."""
    import pyarrow as pa

    from scale_ray.extraction import batch_column, features_column
    from scale_ray.extraction.results import ROW
    from scale_ray.store import GEOMETRY

    count = len(ids)
    filled = {"positions": [bytes(clips * 7 * 4)] * count, "size_bytes": [1_000_000] * count}
    filled |= {name: [value] * count for name, value in zip(GEOMETRY.names, GEOMETRY_OF_ALL, strict=True)}
    columns = {"video_id": ids, "mode": [mode] * count, "shard": [shard] * count, **filled}
    table = {field.name: pa.array(columns.get(field.name, [None] * count), field.type) for field in ROW}
    features = [values[number * 64 : number * 64 + clips * width * 2] for number in range(count)]
    table[features_column(0)] = pa.array(features, pa.binary())
    table[batch_column(0)] = pa.array([16] * count, pa.int64())
    return pa.table(table)


def _blocks(run: Any, clips: int, width: int, per_block: int = 13) -> Iterator[Any]:
    """The blocks of all shards of a run, in turn from two shards at a time, as decoders work at once."""
    import numpy as np

    numbers = np.random.default_rng(0).standard_normal(clips * width + 64 * per_block).astype(np.float16)
    values = numbers.tobytes()
    for first in range(0, len(run.shards), 2):
        pair = [number for number in (first, first + 1) if number < len(run.shards)]
        longest = max(len(run.shards[number].video_ids) for number in pair)
        for start in range(0, longest, per_block):
            for number in pair:
                shard = run.shards[number]
                ids = list(shard.video_ids)[start : start + per_block]
                if ids:
                    yield _result_block(ids, shard.mode, number, clips, width, values)


def _take(run: Any, block: Any) -> None:
    """What the stream does with a block."""
    from scale_ray.extraction import read_results

    for result in read_results(block):
        run.add_result(result)


@contextmanager
def _timed_steps() -> Iterator[dict[str, float]]:
    """The seconds of the steps within commits, measured while the context lasts."""
    from scale_ray.extraction.run import ExtractionRun
    from scale_ray.files import tables
    from scale_ray.store import Lease, shard_store

    seconds: dict[str, float] = {}

    def timed(name: str, function: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return function(*given, **options)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began_s

        return call

    places = (
        (os, "fsync", "fsync"),
        (shard_store, "write_parquet", "encoding Parquet"),
        (Lease, "check", "the lease"),
        (ExtractionRun, "_commit", "the commit as a whole"),
    )
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    assert tables.write_parquet is shard_store.write_parquet
    for place, name, title in places:
        setattr(place, name, timed(title, getattr(place, name)))
    try:
        yield seconds
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def fill(folder: str, videos: int, shard_videos: int) -> dict[str, float]:
    """Make a store of narrow features of the first 99 % of each 100,000 videos of a manifest, if there is none."""
    import numpy as np

    from scale_ray.clips import VideoGeometry
    from scale_ray.corpus import read_corpus
    from scale_ray.store import VideoFeatures

    store = _stored(folder, videos, shard_videos)
    if store.exists():
        return {}
    corpus = read_corpus(manifest(Path(folder), videos))
    geometry, features = VideoGeometry(*GEOMETRY_OF_ALL), np.zeros((2, 4), np.float16)
    positions = np.zeros((2, 7), np.float32)
    with opened(str(store)) as [target]:
        target.store.replace_videos(corpus.videos)
        ids = corpus.videos["video_id"].to_pylist()
        ids = [video_id for number, video_id in enumerate(ids) if number % 100_000 < 99_000]
        for start in range(0, len(ids), shard_videos):
            part = ids[start : start + shard_videos]
            rows = [VideoFeatures(video_id, features, positions, geometry) for video_id in part]
            target.store.commit(target.store.part_name("train", part), "train", rows)
        target.store.replace_videos(corpus.videos)
    return {}


def _stored(folder: str, videos: int, shard_videos: int) -> Path:
    return Path(folder, f"stored-{videos}-{shard_videos}")


class _Arrivals:
    """Takes the place of the progress display and records when results arrive."""

    def __init__(self, at_s: list[float]) -> None:
        self._at_s = at_s

    def advance(self, step: int) -> None:
        self._at_s += [time.perf_counter()] * step


def _ray_core_s(process: Any) -> float:
    """Core-seconds of all processes below this one."""
    import psutil

    total = 0.0
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


STEPS = {"plan": plan, "commit": commit, "fill": fill, "resume": resume, "stream": stream}


def in_checkout(checkout: Path, step: str, *values: object) -> dict[str, float]:
    """What a step measures with the package of a checkout, and the peak of its memory."""
    command = [sys.executable, __file__, "--step", json.dumps([step, *values])]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    ended = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def compare(checkouts: dict[str, Path], step: str, *values: object) -> dict[str, Any]:
    """The figures of each checkout, measured one after the other."""
    figures = {}
    for name, checkout in checkouts.items():
        measured = in_checkout(checkout, step, *values)
        figures[name] = {
            key: float(f"{value:.3g}") if value < 1000 else round(value) for key, value in measured.items()
        }
        print(step, *values, name, json.dumps(figures[name]), file=sys.stderr, flush=True)
    return figures


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if value < 1000 else round(value)


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    checkouts = {"before": given.before, "now": HERE} if given.before else {"now": HERE}
    parts = given.parts.split(",")
    at, figures = str(folder), {}
    if "plan" in parts:
        figures["plan"] = compare(checkouts, "plan", at, given.videos)
    if "commit" in parts:
        for mode, clips, width, shard in (("train", 16, 512, 64), ("train", 16, 512, 1024), ("eval", 30, 512, 64)):
            name = f"commit, {clips} clips x {width}, shards of {shard}"
            figures[name] = compare(checkouts, "commit", at, given.committed, mode, clips, width, shard)
    if "resume" in parts:
        for shard in (64, 256, 1024):
            in_checkout(HERE, "fill", at, given.videos, shard)
            figures[f"resume, shards of {shard}"] = compare(checkouts, "resume", at, given.videos, shard)
    if "stream" in parts:
        for per_block in (3, 13, 64):
            name = f"stream, {per_block} videos per block"
            figures[name] = compare(checkouts, "stream", at, given.streamed * per_block // 13, 1, 1, per_block)
    return figures


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--before", type=Path, help="another checkout of the project to compare with")
    arguments.add_argument("--parts", default="plan,commit,resume,stream", help="parts to measure")
    arguments.add_argument("--videos", type=int, default=1_000_000, help="videos of the plan and of resuming")
    arguments.add_argument("--committed", type=int, default=20_000, help="videos that are committed")
    arguments.add_argument("--streamed", type=int, default=26_000, help="videos of the stream at 13 per block")
    arguments.add_argument("--step", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.step:
        step, *values = json.loads(given.step)
        figures = STEPS[step](*values)
        figures["peak, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(figures))
        return
    with folder_of(given) as folder:
        figures = measure(folder, given)
    del given.step, given.before
    report("driver", given, figures)


if __name__ == "__main__":
    main()
