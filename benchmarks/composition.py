"""Made videos whose class is the order of motions: does the aggregator tell what single clips cannot?

    make      the videos of `composed_videos.py`, and their manifest
    extract   features of the videos, by the command `scale-ray extract`, which goes on where it was stopped: I3D with
              --weights, otherwise a small image network with random weights
    ideal     instead of both: features of an ideal backbone, of the same clips of the same videos, without a pixel
    measure   probes of x alone, of a random and a trained aggregator, and of the set token alone; then how the gain
              changes with one setting of the pretraining

`composed_videos.py` says why x alone cannot be right in more than one of six videos of the same two motions. Three
targets are measured: `label` (18 classes), `motions` (which two of the three: what the backbone has to tell) and
`arrangement` (in which of six orders: what only the clips' times tell). Clips are half a second long, so that they are
shorter than a motion; `eval` takes 16 evenly spaced clips of the whole frame, as many as `train`.

A feature of `ideal` tells which motions its clip shows, what its video looks like, and noise (`ideal_features`). It
divides what a poor result is due to: the backbone, or the aggregator and its training.

The parts of `measure` replace their own section in `results/composition.json`, by the name of the store; `--only`
chooses some of them. Trainings run in this process, without Ray, and are kept in --folder, so that a setting is trained
once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, hardware, parser
from composed_videos import FPS, MOTIONS, SIZE_PX, make_composed, subset_of, timeline, write_manifest

from scale_ray.aggregator import Aggregator
from scale_ray.clip_sets.sources import ResidentClips
from scale_ray.clips import VideoGeometry, plan_clips
from scale_ray.config import (
    AggregatorOptions,
    CorpusOptions,
    ObjectiveOptions,
    PretrainConfig,
    Probing,
    Sampling,
    Sets,
    Training,
)
from scale_ray.corpus import read_corpus
from scale_ray.pretraining.trainer import Metrics, Trainer, fit
from scale_ray.probes.evaluation import probe_table
from scale_ray.probes.table import ProbeTable
from scale_ray.store import FeatureStore, VideoFeatures, fingerprint_of
from scale_ray.store.clip_reader import training_clips

CPU = torch.device("cpu")
# Clips of 16 / 30 s: 8 frames, every other one of 30 per second.
SAMPLING = ("--frames", "8", "--stride", "2", "--eval-times", "16", "--eval-crops", "1")
RANDOM_BACKBONE = ("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--frame-pooling", "moments")
TARGETS = ("label", "motions", "arrangement")


@dataclass(frozen=True)
class Setting:
    """A training: its sets, its masks, its number of training videos (0: all) and its epochs."""

    set_size: int = 8
    mask_ratio: float = 0.25
    videos: int = 0
    epochs: int = 100
    seed: int = 0


def make(given: argparse.Namespace) -> None:
    began_s = time.monotonic()
    for number, _ in enumerate(make_composed(given.folder, given.videos, processes=given.processes), 1):
        if number % 100 == 0 or number == given.videos:
            print(f"{number} of {given.videos} videos, {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    print(write_manifest(given.folder, given.videos))


def extract(given: argparse.Namespace) -> None:
    manifest = write_manifest(given.folder, given.videos)
    backbone = RANDOM_BACKBONE
    if given.weights is not None:
        backbone = ("--backbone", "i3d", "--weights", str(given.weights))
    arguments = ["extract", str(manifest), "--store", str(given.folder / given.store), *backbone]
    arguments += [*SAMPLING, "--input-px", str(given.input_px), "--shard-videos", "32"]
    # With one thread each, two actors do not wait for each other: on a busy machine, threads of one actor do.
    arguments += ["--cpus", str(given.processes), "--actors", str(given.processes), "--actor-cpus", "1"]
    print(f"scale-ray {' '.join(arguments)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "scale_ray", *arguments], check=True)


def ideal(given: argparse.Namespace) -> None:
    """Write `--store` with invented features of the clips that `extract` would take; no video is needed."""
    (given.folder / "videos").mkdir(exist_ok=True)
    sampling = Sampling(frames=8, stride=2, eval_times=16, eval_crops=1)
    backbone = {"backbone": "ideal", "weights": f"appearance {given.appearance}, noise {given.noise}"}
    store = FeatureStore.create(str(given.folder / given.store), fingerprint_of(backbone, sampling))
    parts: dict[str, list[VideoFeatures]] = {"train": [], "eval": []}
    for number in range(given.videos):
        mode = "eval" if subset_of(number) == "test" else "train"
        parts[mode].append(ideal_features(number, mode, sampling, given.appearance, given.noise))
    for mode, videos in parts.items():
        for start in range(0, len(videos), 64):
            shard = videos[start : start + 64]
            store.commit(store.part_name(mode, [video.video_id for video in shard]), mode, shard)
    store.replace_videos(read_corpus(str(write_manifest(given.folder, given.videos)), CorpusOptions()).videos)


def ideal_features(number: int, mode: str, sampling: Sampling, appearance: float, noise: float) -> VideoFeatures:
    """The sum of three vectors of 64 numbers: what a clip shows, what its video looks like, and noise.

    The first is the mean over the clip's frames of a vector of variance 1 for each motion, and zero at rest. The second
    has the variance `appearance` squared and is the same for all clips of the video; the third has `noise` squared.
    """
    vectors = np.vstack([np.random.default_rng(0).normal(size=(len(MOTIONS), 64)), np.zeros(64)])
    moments, num_frames = timeline(number)
    shown = np.full(num_frames, len(MOTIONS))
    for moment in moments:
        shown[moment.start : moment.end] = MOTIONS.index(moment.motion)
    geometry = VideoGeometry(SIZE_PX, SIZE_PX, num_frames / FPS, FPS)
    clips = plan_clips(f"{number:05d}", mode, geometry, sampling)
    frames = [np.minimum(np.array(clip.times_s) * FPS + 1e-6, num_frames - 1).astype(int) for clip in clips]
    rng = np.random.default_rng([0, number, 2])
    features = np.stack([vectors[shown[indices]].mean(0) for indices in frames])
    features += appearance * rng.normal(size=64) + noise * rng.normal(size=features.shape)
    positions = [(1 if clip.flipped else -1, *clip.box_px, clip.times_s[0], clip.times_s[-1]) for clip in clips]
    return VideoFeatures(f"{number:05d}", features.astype(np.float16), np.array(positions, np.float32), geometry)


class LastEpoch:
    """A listener that keeps the metrics of the last epoch."""

    def __init__(self) -> None:
        self.metrics: Metrics = {}

    def after_step(self, trainer: Trainer, values: dict[str, torch.Tensor]) -> None: ...

    def after_epoch(self, trainer: Trainer, metrics: Metrics) -> None:
        self.metrics = metrics


class Trainings:
    """The trained aggregators of a store, by setting; each is trained once and kept in a folder."""

    def __init__(self, store: FeatureStore, folder: Path, given: argparse.Namespace) -> None:
        self._store, self._folder, self._given = store, folder, given
        clips, _ = training_clips(store)
        self._clips = ResidentClips.from_clips(clips.read(), CPU)
        self.num_videos = self._clips.num_videos
        folder.mkdir(parents=True, exist_ok=True)

    def aggregator(self, setting: Setting) -> tuple[Aggregator, dict[str, Any]]:
        """The aggregator of a setting, and the metrics of the last epoch of its training."""
        config = self._config(setting)
        path = self._folder / f"{'-'.join(map(str, vars(setting).values()))}-{self.num_videos}.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True)
            model = Aggregator(self._clips.feature_width, config.aggregator)
            model.load_state_dict(saved["state"])
            return model.eval(), saved["metrics"]
        began_s, last = time.monotonic(), LastEpoch()
        trainer = Trainer(self._videos(setting), config, device=CPU, origin=self._store.origin)
        fit(trainer, last)
        names = ("loss", "set_loss", "clip_loss", "set_top1", "clip_top1")
        metrics: dict[str, Any] = {name: round(last.metrics[name], 4) for name in names}
        metrics["seconds"] = round(time.monotonic() - began_s, 1)
        torch.save({"state": trainer.model.state_dict(), "metrics": metrics}, path)
        print(setting, metrics, file=sys.stderr, flush=True)
        return trainer.model.eval(), metrics

    def _videos(self, setting: Setting) -> ResidentClips:
        """All training videos or the first ones, which hold all classes: videos are numbered by class in turn."""
        if setting.videos in (0, self.num_videos):
            return self._clips
        return self._clips.subset(torch.arange(setting.videos))

    def _config(self, setting: Setting) -> PretrainConfig:
        given = self._given
        return PretrainConfig(
            sets=Sets(set_size=setting.set_size, mask_ratio=setting.mask_ratio),
            aggregator=AggregatorOptions(width=given.width),
            objective=ObjectiveOptions(prediction_hidden=given.heads, target_hidden=given.heads),
            training=Training(
                epochs=setting.epochs,
                batch=min(given.batch, setting.videos or self.num_videos),
                learning_rate=given.learning_rate,
                seed=setting.seed,
                monitor_epochs=0,
            ),
        )


class Measurement:
    """The parts of `measure` on one store: each returns its figures."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.set_num_threads(given.threads)
        self.given = given
        self.store = FeatureStore(str(given.folder / given.store))
        self.trainings = Trainings(self.store, given.folder / f"trainings-{given.store}", given)
        self.base = Setting(epochs=given.epochs)

    def table(self) -> dict[str, Any]:
        """All representations, for each of the targets."""
        return {target: self._probed([self.base], self.given.probes, target=target) for target in self.given.targets}

    def attentive(self) -> dict[str, Any]:
        """Attention of one learned query over the clips, of all representations."""
        return self._probed([self.base], ("attentive",))

    def finetuned(self) -> dict[str, Any]:
        """The aggregator trained with the labels, from random weights and from pretrained ones: what it could tell."""
        return self._probed([self.base], ("finetuned",))

    def mlp(self) -> dict[str, Any]:
        """The paper's non-linear baseline, of geometry and of x alone, with one learning rate."""
        return self._probed([self.base], ("mlp",), learning_rates=(1e-3,))

    def set_size(self) -> dict[str, Any]:
        return self._varied("set_size", self.given.set_sizes)

    def mask_ratio(self) -> dict[str, Any]:
        return self._varied("mask_ratio", self.given.mask_ratios)

    def videos(self) -> dict[str, Any]:
        """Fewer videos of pretraining; the probes still see all labelled ones. As many epochs, so fewer steps."""
        half = self.trainings.num_videos
        amounts = [half // 2**halvings for halvings in reversed(range(1, self.given.halvings + 1))]
        return self._varied("videos", [*amounts, 0])

    def epochs(self) -> dict[str, Any]:
        return self._varied("epochs", self.given.epoch_numbers)

    def _varied(self, option: str, values: Sequence[float]) -> dict[str, Any]:
        """Tables of trainings that differ from the base in one option."""
        settings = {value: Setting(**{**vars(self.base), option: value}) for value in values}
        return {str(value): self._probed([setting], self.given.probes) for value, setting in settings.items()}

    def _probed(self, settings: Sequence[Setting], probes: tuple[str, ...], **options: Any) -> dict[str, Any]:
        trained = [
            self.trainings.aggregator(Setting(**{**vars(setting), "seed": seed}))
            for setting in settings
            for seed in range(self.given.seeds)
        ]
        began_s = time.monotonic()
        given = self.given
        chosen = {"learning_rates": given.probe_learning_rates, "weight_decays": (1e-4,), "target": "label"}
        probing = Probing(
            probes=probes,
            probe_min_steps=given.probe_steps,
            probe_epochs=given.probe_epochs,
            deep_min_steps=given.probe_steps,
            probe_batch=given.probe_batch,
            **{**chosen, **options},
        )
        table, _ = probe_table(self.store, [aggregator for aggregator, _ in trained], probing)
        print("\n".join(table.lines()), file=sys.stderr, flush=True)
        figures = figures_of(table)
        return {
            **figures,
            "trainings": [metrics for _, metrics in trained],
            "probe_seconds": round(time.monotonic() - began_s, 1),
        }


MEASURED = ("table", "attentive", "finetuned", "mlp", "epochs", "videos", "set_size", "mask_ratio")


def figures_of(table: ProbeTable) -> dict[str, Any]:
    """The main metrics of a table: value and both ends of the interval, by representation; and the gains."""

    def rounded(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
        return {
            name: [round(value, 4) for value in (estimate.value, estimate.low, estimate.high)]
            for name, estimate in metrics.items()
            if name in table.metric_names(main=True)
        }

    return {
        "training_videos": table.num_train_videos,
        "test_videos": table.num_test_videos,
        "classes": table.num_classes,
        "chance": round(table.chance, 4),
        "rows": {row.representation: rounded(row.metrics) for row in table.rows},
        "gain": rounded(table.gains),
    }


def measure(given: argparse.Namespace) -> None:
    chosen = MEASURED if given.only is None else given.only.split(",")
    if unknown := set(chosen) - set(MEASURED):
        raise SystemExit(f"--only: expected some of {','.join(MEASURED)}, found {','.join(sorted(unknown))}")
    measurement = Measurement(given)
    for part in chosen:
        figures: Callable[[], dict[str, Any]] = getattr(measurement, part)
        save(part, given, figures(), measurement.store)


def save(part: str, given: argparse.Namespace, figures: dict[str, Any], store: FeatureStore) -> None:
    """Print a part's record; with --save also replace its section in the results."""
    unsaved = ("folder", "save", "part", "run", "only", "store")
    record = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "load_average": round(os.getloadavg()[0], 1),
        "options": {name: value for name, value in vars(given).items() if name not in unsaved},
        "backbone": {name: store.fingerprint[name] for name in ("backbone", "weights") if name in store.fingerprint},
        "figures": figures,
    }
    print(json.dumps({part: record}, indent=1))
    if given.save:
        path = RESULTS / "composition.json"
        stores = json.loads(path.read_text()) if path.exists() else {}
        stores.setdefault(given.store, {})[part] = record
        path.write_text(json.dumps(stores, indent=1) + "\n")


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def numbers(kind: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """A parser of numbers that are separated by commas."""
    return lambda text: tuple(kind(part) for part in text.split(","))


def main() -> None:
    arguments = parser(__doc__)
    parts = arguments.add_subparsers(dest="part", required=True)

    def part(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = parts.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        added.set_defaults(run=run)
        return added

    for name, run in (("make", make), ("extract", extract), ("ideal", ideal)):
        added = part(name, run)
        added.add_argument("--videos", type=int, default=1980, help="number of videos; a fifth of them is for testing")
        if name != "ideal":
            added.add_argument("--processes", type=int, default=2, help="processes to make videos, cores to extract")
        if name != "make":
            added.add_argument("--store", default="store" if name == "extract" else name, help="name of its folder")
        if name == "extract":
            added.add_argument("--weights", type=Path, help="weights of I3D; without: random ones of an image network")
            added.add_argument("--input-px", type=int, default=64, help="side of the backbone's input")
        if name == "ideal":
            added.add_argument("--appearance", type=float, default=1.0, help="deviation of the vector of a video")
            added.add_argument("--noise", type=float, default=0.5, help="deviation of the noise of a clip")
    measured = part("measure", measure)
    measured.add_argument("--store", default="store", help="name of the store's folder")
    measured.add_argument("--only", help=f"some of {','.join(MEASURED)}")
    measured.add_argument("--targets", type=names, default=TARGETS, help="targets of the table")
    measured.add_argument("--probes", type=names, default=("knn", "linear"), help="probes, unless the part names them")
    measured.add_argument("--threads", type=int, default=2, help="threads of torch")
    measured.add_argument("--seeds", type=int, default=1, help="trainings of each setting, each with its own probes")
    measured.add_argument("--epochs", type=int, default=100, help="epochs of a training, unless they are varied")
    measured.add_argument("--batch", type=int, default=128, help="videos per batch")
    measured.add_argument("--learning-rate", type=float, default=1e-3, help="learning rate of the trainings")
    measured.add_argument("--width", type=int, default=128, help="width of the aggregator")
    measured.add_argument("--heads", type=int, default=256, help="hidden width of the prediction and target heads")
    measured.add_argument("--probe-steps", type=int, default=700, help="minimum number of steps of trained probes")
    measured.add_argument("--probe-epochs", type=int, default=60, help="minimum number of epochs of trained probes")
    measured.add_argument("--probe-batch", type=int, default=256, help="videos per batch of trained probes")
    rates = (3e-4, 1e-3, 3e-3)
    measured.add_argument("--probe-learning-rates", type=numbers(float), default=rates, help="of the trained probes")
    measured.add_argument("--set-sizes", type=numbers(int), default=(2, 4, 8), help="set sizes to compare")
    measured.add_argument("--mask-ratios", type=numbers(float), default=(0.1, 0.25, 0.5, 0.75), help="to compare")
    measured.add_argument("--epoch-numbers", type=numbers(int), default=(10, 30, 100), help="epochs to compare")
    measured.add_argument("--halvings", type=int, default=3, help="how often the number of videos is halved")
    given = arguments.parse_args()
    if given.folder is None:
        arguments.error("--folder: expected a folder, which the parts share")
    given.folder.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    given.run(given)


if __name__ == "__main__":
    main()
