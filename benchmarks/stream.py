"""The Ray Data stream compared with a bare loop: same videos, decoder, backbone and threads, in one run.

With a heavy backbone, the loop decodes and embeds one video after the other. With a trivial backbone, which reads a few
pixels, the stream is compared with the raw decoding rate of all cores: one process per core, which only decodes.

The rate of the stream is counted from its first to its last committed result, that of the loop without the loading of
the backbone. The time to start Ray and the actors is reported separately, as `start_s`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from common import folder_of, make_video, parser, report

from scale_ray.backbones import Backbone, load_backbone
from scale_ray.config import BackboneOptions, Cluster, CorpusOptions, Extraction, Sampling
from scale_ray.corpus.corpus import read_corpus
from scale_ray.decoding.decode import video_bytes
from scale_ray.decoding.decoder_process import Decoder, Request, SharedPixels
from scale_ray.distributed import stream as ray_stream
from scale_ray.distributed.cluster import connected

SAMPLING = Sampling()


class Trivial(Backbone):
    """A backbone of minimal cost: its features are a few pixels of the first frame."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 0, ::32, ::32].flatten(1).float()


def trivial() -> Backbone:
    return Trivial("trivial", torch.nn.Identity(), input_px=224, weights_id="none")


def linked_videos(folder: Path, count: int, *, width: int, height: int) -> Path:
    """A folder with `count` videos of ten seconds, all links to one file."""
    videos = folder / f"videos-{width}x{height}-{count}"
    videos.mkdir(exist_ok=True)
    source = make_video(folder / f"10s-{width}x{height}.mp4", duration_s=10, key_every=250, width=width, height=height)
    for number in range(count):
        path = videos / f"{number:05d}.mp4"
        if not path.exists():
            os.link(source, path)
    return videos


def loop_rate(videos: Path, encoder: Backbone, count: int, batch_clips: int) -> float:
    """Videos per second of decoding and embedding one after the other, in this process."""
    from scale_ray.decoding.decode import decode_clips

    began_s = time.perf_counter()
    for path in sorted(videos.iterdir())[:count]:
        clips = decode_clips(str(path), path.name, "train", SAMPLING, [encoder.input_px])
        torch.cat([encoder(batch) for batch in torch.from_numpy(clips.pixels[0]).split(batch_clips)]).half()
    return count / (time.perf_counter() - began_s)


def decoding_rate(videos: Path, input_size_px: int, processes: int, count: int) -> float:
    """Videos per second of several decoder processes without any other work."""
    paths = sorted(videos.iterdir())[:count]

    def work(number: int) -> None:
        pixels = SharedPixels(video_bytes("train", SAMPLING, [input_size_px]))
        with Decoder(timeout_s=300, memory_gib=8) as decoder:
            for path in paths[number::processes]:
                decoder.decode(Request(str(path), path.name, "train", SAMPLING, (input_size_px,), (0,)), pixels)

    began_s = time.perf_counter()
    with ThreadPoolExecutor(processes) as threads:
        list(threads.map(work, range(processes)))
    return count / (time.perf_counter() - began_s)


class Arrivals:
    """Takes the place of the progress display and records when results arrive."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def advance(self, step: int) -> None:
        self.at_s += [time.perf_counter()] * step


class StreamTimes(NamedTuple):
    """Videos per second between the first and the last block, and when these three happened (`perf_counter`)."""

    videos_per_s: float
    began_at_s: float
    first_at_s: float
    last_at_s: float


def stream_times(videos: Path, store: Path, encoder: Backbone, extraction: Extraction, cores: int) -> StreamTimes:
    """Extract a folder of videos into a new store."""
    from scale_ray.extraction import ExtractionRun, Target
    from scale_ray.store.feature_store import FeatureStore
    from scale_ray.store.lease import write_lease
    from scale_ray.store.schema import fingerprint_of

    corpus = read_corpus(str(videos), CorpusOptions())
    features = FeatureStore.create(str(store), fingerprint_of(encoder.identity(), SAMPLING))
    arrivals = Arrivals()
    with write_lease(str(store)) as lease:
        run = ExtractionRun(corpus, [Target(encoder, features, lease)], extraction)
        began_s = time.perf_counter()
        with connected(Cluster(cpus=cores)) as size:
            ray_stream.stream_shards(run, SAMPLING, extraction, size, arrivals)  # type: ignore[arg-type]
        assert not run.incomplete()
        [summary] = run.finish()
        assert summary.num_done == len(corpus.videos)
    first_s, last_s = arrivals.at_s[0], arrivals.at_s[-1]
    in_first_block = sum(at_s - first_s < 0.05 for at_s in arrivals.at_s)
    rate = (len(arrivals.at_s) - in_first_block) / (last_s - first_s)
    return StreamTimes(rate, began_s, first_s, last_s)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--heavy", default="r3d_18", help="backbone of the heavy case")
    arguments.add_argument("--heavy-videos", type=int, default=12, help="videos of the heavy case")
    arguments.add_argument("--trivial-videos", type=int, default=160, help="videos of the trivial case")
    arguments.add_argument("--cases", default="heavy,trivial", help="cases to measure, separated by commas")
    arguments.add_argument("--repeats", type=int, default=3, help="repetitions of each, interleaved")
    arguments.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="cores to use")
    given = arguments.parse_args()
    torch.set_num_threads(min(given.cores, 2))
    with folder_of(given) as folder:
        cases = {
            "heavy": (
                load_backbone(BackboneOptions(backbone=given.heavy, weights="none"), SAMPLING.frames),
                linked_videos(folder, given.heavy_videos, width=320, height=240),
                Extraction(mode="train"),
            ),
            "trivial": (
                trivial(),
                linked_videos(folder, given.trivial_videos, width=320, height=240),
                Extraction(mode="train", decoders=given.cores),
            ),
        }
        for name, (encoder, videos, extraction) in cases.items():
            if name not in given.cases.split(","):
                continue
            count = len(list(videos.iterdir()))
            rates: dict[str, list[float]] = {"stream": [], "bare": []}
            starts_s, totals_s = [], []
            for repeat in range(given.repeats):
                if name == "heavy":
                    rates["bare"].append(loop_rate(videos, encoder, count, extraction.batch_clips))
                else:
                    rates["bare"].append(decoding_rate(videos, encoder.input_px, given.cores, max(count // 2, 4)))
                times = stream_times(
                    videos, folder / f"store-{name}-{time.time_ns()}", encoder, extraction, given.cores
                )
                rates["stream"].append(times.videos_per_s)
                starts_s.append(times.first_at_s - times.began_at_s)
                totals_s.append(times.last_at_s - times.began_at_s)
                print(name, repeat, rates, "start", starts_s[-1], "all", totals_s[-1], file=sys.stderr, flush=True)
            pairs = [stream / bare for stream, bare in zip(rates["stream"], rates["bare"], strict=True)]
            figures = {
                "backbone": encoder.name,
                "videos": count,
                "videos/s": {name: [round(v, 3) for v in values] for name, values in rates.items()},
                "stream over bare, each run": [round(ratio, 3) for ratio in pairs],
                "stream over bare, median": round(statistics.median(pairs), 3),
                "start_s": [round(v, 1) for v in starts_s],
                "in all, with start, s": [round(v, 1) for v in totals_s],
            }
            report(f"stream_{name}", given, figures)


if __name__ == "__main__":
    main()
