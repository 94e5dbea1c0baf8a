"""What the baselines of the probes reach: position and geometry alone, the linear and the MLP probe of a feature.

    geometry VIDEOS  position and geometry alone, of labelled videos with official splits: their clips are planned from
                     the files' headers, and no pixel is decoded
    mlp              the linear and the MLP probe of an invented feature whose classes no linear classifier tells apart,
                     with the paper's one setting (learning rate 3e-4, weight decay 1e-4)

To compare two versions, run it with the other checkout in PYTHONPATH.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import folder_of, parser, report

from scale_ray.aggregator import Aggregator
from scale_ray.clips import VideoGeometry, plan_clips
from scale_ray.config import AggregatorOptions, CorpusOptions, Ingest, Probing, Sampling
from scale_ray.corpus import read_corpus
from scale_ray.inspection.headers import header_of
from scale_ray.probes import suite
from scale_ray.probes.data import ProbeSplit, load_probe_split
from scale_ray.probes.evaluation import GEOMETRY_ALONE, probe_table
from scale_ray.probes.inputs import View
from scale_ray.probes.targets import read_targets
from scale_ray.store import FeatureStore, VideoFeatures, fingerprint_of

CLIPS, WIDTH, HIDDEN = 16, 32, 3
TRAIN_VIDEOS, TEST_VIDEOS = 64, 500
FINGERPRINT = fingerprint_of({"backbone": "none", "weights": "none"}, Sampling())


def store_of(
    folder: Path, train: Sequence[VideoFeatures], test: Sequence[VideoFeatures], corpus: pa.Table
) -> FeatureStore:
    store = FeatureStore.create(str(folder / "store"), FINGERPRINT)
    for mode, videos in (("train", train), ("eval", test)):
        store.commit(store.part_name(mode, [video.video_id for video in videos]), mode, videos)
    store.replace_videos(corpus)
    return store


def planned(video_id: str, path: str, mode: str) -> VideoFeatures:
    """The planned clips of a video, with features of zeros."""
    header = header_of(video_id, path)
    if header.duration_s is None or header.fps is None:
        raise SystemExit(f"{path}: expected a header with a length and a frame rate")
    geometry = VideoGeometry(header.height_px, header.width_px, header.duration_s, header.fps)
    clips = plan_clips(video_id, mode, geometry, Sampling())
    positions = [(1 if clip.flipped else -1, *clip.box_px, clip.times_s[0], clip.times_s[-1]) for clip in clips]
    return VideoFeatures(video_id, np.zeros((len(clips), 4), np.float16), np.array(positions, np.float32), geometry)


def geometry(folder: Path, given: argparse.Namespace) -> dict[str, list[float]]:
    """Every metric of position and geometry alone, by seed."""
    corpus = read_corpus(given.videos, CorpusOptions()).videos
    parts: dict[str, list[VideoFeatures]] = {"train": [], "eval": []}
    for row in corpus.to_pylist():
        mode = "eval" if "test" in dict(row["splits"]).values() else "train"
        parts[mode].append(planned(row["video_id"], row["path"], mode))
    given.videos = "VIDEOS"  # local paths do not belong in a report
    store = store_of(folder, parts["train"], parts["eval"], corpus)
    aggregator = Aggregator(4, AggregatorOptions(width=32, layers=1)).eval()
    probing = Probing(probes=("knn", "linear", "retrieval", "clustering"), probe_seeds=given.seeds, resamples=20)
    rows = {row.representation: row.metrics for row in probe_table(store, [aggregator], probing)[0].rows}
    return {name: [round(value, 4) for value in metric.each] for name, metric in rows[GEOMETRY_ALONE].items()}


def invented_split(folder: Path) -> ProbeSplit:
    """Videos of four classes, the signs of two products of a hidden vector's numbers.

    A clip shows the hidden vector, with noise, through a fixed random network.
    """
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(HIDDEN, 64)), rng.normal(size=(64, WIDTH)) / 8
    positions = np.tile(np.array([-1, 0, 0, 240, 320, 0, 2], np.float32), (CLIPS, 1))
    videos, labels = [], []
    for number in range(TRAIN_VIDEOS + TEST_VIDEOS):
        hidden = rng.normal(size=HIDDEN)
        signs = (hidden * np.roll(hidden, 1) > 0).astype(int)
        labels.append(f"class {signs[0]}{signs[1]}")
        features = np.tanh((hidden + 0.3 * rng.normal(size=(CLIPS, HIDDEN))) @ first) @ second
        features += 0.2 * rng.normal(size=features.shape)
        size = VideoGeometry(240, 320, 8.0, 30.0)
        videos.append(VideoFeatures(f"v{number:04d}", features.astype(np.float16), positions, size))
    subsets = ["train"] * TRAIN_VIDEOS + ["test"] * TEST_VIDEOS
    ids = [video.video_id for video in videos]
    corpus = {
        "video_id": ids,
        "path": [f"{video_id}.mp4" for video_id in ids],
        "size_bytes": pa.array([1] * len(ids), pa.int64()),
        "start_s": pa.nulls(len(ids), pa.float64()),
        "end_s": pa.nulls(len(ids), pa.float64()),
        "label": labels,
        "labels": pa.nulls(len(ids), pa.list_(pa.string())),
        "target": pa.nulls(len(ids), pa.float64()),
        "group": pa.nulls(len(ids), pa.string()),
        "splits": pa.array([[("default", subset)] for subset in subsets], pa.map_(pa.string(), pa.string())),
    }
    store = store_of(folder, videos[:TRAIN_VIDEOS], videos[TRAIN_VIDEOS:], pa.table(corpus))
    return load_probe_split(store, read_targets(store), "default", Ingest())


def mlp(folder: Path, given: argparse.Namespace) -> dict[str, list[float]]:
    """Top-1 of the linear and the MLP probe of the feature alone, by seed."""
    split = invented_split(folder)
    probing = Probing(learning_rates=(3e-4,), weight_decays=(1e-4,))
    top1: dict[str, list[float]] = {"linear": [], "mlp": []}
    for seed in range(given.seeds):
        rows = split.fit_and_selection_rows(0.2, seed)
        task = suite.ProbeTask(View(split.train, "feature"), split.targets, *rows, split.refit_rows, probing, seed)
        for name, values in top1.items():
            scores = getattr(suite, name)(task).scores(View(split.test, "feature"), TEST_VIDEOS)
            values.append(round(float((scores.argmax(1) == split.test.targets).float().mean()), 4))
    return top1


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0")
    cases = arguments.add_subparsers(dest="case", required=True)
    cases.add_parser("geometry").add_argument("videos", help="labelled videos with splits")
    cases.add_parser("mlp")
    given = arguments.parse_args()
    with folder_of(given) as folder:
        figures = {"geometry": geometry, "mlp": mlp}[given.case](folder, given)
    report(f"baselines_{given.case}", given, figures)


if __name__ == "__main__":
    main()
