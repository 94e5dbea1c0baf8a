"""What set aggregation adds to the features of a real action network: I3D on UT-Interaction.

    official      the official split: aggregators trained on its training videos, and every probe
    leave-one-out each group in turn is the test split, the aggregators are trained on the other groups
    videos        the official split, with aggregators trained on more and more videos; on more than the training split
                  they are transductive, and the figures say so
    options       the official split, with one option of pretraining or representation changed at a time; the top-1 of
                  k-NN among the training videos, by which one would choose, beside that of the test videos
    position-code the official split, trained in bfloat16, with the position code in float32 and in bfloat16, as it was
                  before; and how far the code of a random aggregator is rounded

STORE holds `train` and `eval` clips of all labelled videos, with groups; `--unlabelled` is a store of further videos of
the same backbone. Everything runs in this process, without Ray. Each seed is used for a training and for its probes.
The MLP takes the paper's one setting (learning rate 3e-4, weight decay 1e-4), since a grid costs it six times as much;
with --one-setting the linear probe takes it too, in all parts but `official`.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import torch
from common import folder_of, parser, report
from seeds import FirstAndLastEpoch

from scale_ray.aggregator import Aggregator
from scale_ray.clip_sets import ResidentClips
from scale_ray.config import AggregatorOptions, Ingest, PretrainConfig, Probing, Representing
from scale_ray.hashing import uniform_hash
from scale_ray.pretraining import Trainer, fit
from scale_ray.probes import ProbeTable, probe_table, suite
from scale_ray.probes.bootstrap import BootstrapSamples, Estimate, resamples_of
from scale_ray.probes.data import ProbeDataset, ProbeSplit, load_probe_split
from scale_ray.probes.evaluation import (
    BACKBONE_ALONE,
    GEOMETRY_ALONE,
    RANDOM_AGGREGATOR,
    SET_TOKEN_ALONE,
    TRAINED_AGGREGATOR,
)
from scale_ray.probes.inputs import Tokens, View
from scale_ray.probes.metrics import Metric, score_metrics
from scale_ray.probes.monitor import knn_top1_within
from scale_ray.probes.targets import read_targets
from scale_ray.probes.token_weight import chosen_token_weight
from scale_ray.store import FeatureStore, StoredClips, TrainingStores

CPU = torch.device("cpu")
NAMES = ("loss", "set_top1", "position_top1", "clip_top1")
ONE_SETTING = {"learning_rates": (3e-4,), "weight_decays": (1e-4,)}
# Options that are changed one at a time: of the pretraining, and of the representation alone.
PRETRAINING: dict[str, dict[str, Any]] = {
    "position_dropout 0.5": {"position_dropout": 0.5},
    "time_jitter 0.5": {"time_jitter": 0.5},
    "position_scale set": {"position_scale": "set"},
    "negatives other_groups": {"negatives": "other_groups"},
}
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Of the last two, the weight of the tokens is chosen among WEIGHTS.
REPRESENTING: dict[str, tuple[Representing, tuple[float, ...]]] = {
    "unit_norm": (Representing(unit_norm=True), ()),
    "parts x,c,h": (Representing(parts=("x", "c", "h")), ()),
    "parts x,c,h_mean": (Representing(parts=("x", "c", "h_mean")), ()),
    "token_weights": (Representing(), WEIGHTS),
    "unit_norm, token_weights": (Representing(unit_norm=True), WEIGHTS),
}
PROBES = ("knn", "linear")
# Of leave-one-out, which has many probes.
COMPARED = (BACKBONE_ALONE, RANDOM_AGGREGATOR, TRAINED_AGGREGATOR)


def summary(epochs: FirstAndLastEpoch) -> dict[str, list[float]]:
    """Metrics of the first and the last epoch."""
    return {name: [round(epoch[name], 3) for epoch in (epochs.first, epochs.last)] for name in NAMES}


class Videos:
    """The `train` clips of the labelled videos of a store, and of an unlabelled store."""

    def __init__(self, store: FeatureStore, unlabelled: FeatureStore | None = None) -> None:
        stores = TrainingStores([store] if unlabelled is None else [store, unlabelled])
        self.store, self.groups = store, stores.groups()
        self.labelled = StoredClips(store, "train").video_ids
        self.unlabelled = [] if unlabelled is None else StoredClips(unlabelled, "train").video_ids
        self._clips, _ = stores.training_clips(everything=True)

    def trained(
        self, ids: Sequence[str], seed: int, given: argparse.Namespace, **options: Any
    ) -> tuple[Aggregator, dict[str, Any]]:
        """An aggregator trained on these videos for `given.steps` steps, and how its training went."""
        batch = min(given.batch, len(ids))
        config = PretrainConfig().replaced(
            epochs=math.ceil(given.steps / (len(ids) // batch)),
            batch=batch,
            seed=seed,
            monitor_epochs=0,
            prediction_hidden=given.heads,
            target_hidden=given.heads // 2,
            **options,
        )
        source = ResidentClips.from_clips(self._clips.read_videos(sorted(ids)), CPU, self.groups)
        trainer, epochs = Trainer(source, config, device=CPU, origin=self.store.origin), FirstAndLastEpoch()
        fit(trainer, epochs)
        print(len(ids), "videos, seed", seed, options or "", summary(epochs), file=sys.stderr, flush=True)
        return trainer.model.eval(), summary(epochs)


def official_split(store: FeatureStore) -> ProbeSplit:
    return load_probe_split(store, read_targets(store), store.split_names()[0], Ingest())


def subset_ids(store: FeatureStore, subset: str, split: str | None = None) -> list[str]:
    return sorted(video_id for video_id, found in store.splits(split).items() if found == subset)


def rounded(table: ProbeTable) -> dict[str, Any]:
    """The estimates of a table, by representation and metric: value, low, high and those of the seeds."""
    rows = {row.representation: row.metrics for row in table.rows} | {"gain over the feature": table.gains}
    return {name: {metric: of_estimate(e) for metric, e in metrics.items()} for name, metrics in rows.items()}


def of_estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        name: [round(v, 4) for v in value] if isinstance(value, list) else round(value, 4)
        for name, value in asdict(estimate).items()
    }


def mlp_of_feature(store: FeatureStore, seeds: int) -> dict[str, Any]:
    """The MLP probe of the feature alone, with the paper's one setting."""
    split = official_split(store)
    probing, metrics = Probing(**ONE_SETTING), []
    for seed in range(seeds):
        rows = split.fit_and_selection_rows(probing.choice_share, seed)
        task = suite.ProbeTask(View(split.train, "feature"), split.targets, *rows, split.refit_rows, probing, seed)
        scores = suite.mlp(task).scores(View(split.test, "feature"), len(split.test))
        metrics += score_metrics("mlp", scores, split.test.targets, split.targets)
        print("mlp, seed", seed, metrics[-1].value(), file=sys.stderr, flush=True)
    draws = list(resamples_of(split.test.groups, probing.resamples, 0))
    return of_estimate(BootstrapSamples.from_metrics(metrics, draws).estimate(0))


def official(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Every probe of the official split; the aggregators see its training videos alone."""
    videos = Videos(FeatureStore(given.store))
    ids = subset_ids(videos.store, "train")
    results = [videos.trained(ids, seed, given) for seed in range(given.seeds)]
    probing = Probing(probes=("knn", "linear", "attentive", "lowshot", "retrieval", "clustering"), low_shot=(1, 5))
    table, _ = probe_table(videos.store, [aggregator for aggregator, _ in results], probing)
    print("\n".join(table.lines()), file=sys.stderr, flush=True)
    return {
        "trainings": [epochs for _, epochs in results],
        "table": rounded(table),
        "mlp of the feature": mlp_of_feature(videos.store, given.seeds) if given.mlp else None,
    }


def with_group_splits(store: FeatureStore, location: Path) -> FeatureStore:
    """A copy of a store, with one split per group: the group is the test split, the other groups train."""
    shutil.copytree(store.location, location)
    copied, groups = FeatureStore(str(location)), store.groups()
    table = copied.videos()
    splits = [
        [(group, "test" if groups[video_id] == group else "train") for group in sorted(set(groups.values()))]
        for video_id in table["video_id"].to_pylist()
    ]
    column = table.schema.get_field_index("splits")
    copied.replace_videos(table.set_column(column, "splits", pa.array(splits, pa.map_(pa.string(), pa.string()))))
    return copied


def leave_one_out(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The mean over the groups of what is measured on each; intervals by bootstrap over groups and seeds."""
    store = with_group_splits(FeatureStore(given.store), folder / "store-by-group")
    videos, targets = Videos(store), read_targets(store)
    top1: dict[str, dict[str, list[list[float]]]] = {}  # row -> probe -> group -> seed
    for number, group in enumerate(store.split_names()):
        ids, split = subset_ids(store, "train", group), load_probe_split(store, targets, group, Ingest())
        trained = [videos.trained(ids, seed, given)[0] for seed in range(given.seeds)]
        rows = {name: row for name, row in rows_of(split, trained).items() if name in COMPARED}
        for name, metrics in measured(split, rows, given.probing).items():
            for probe, of_seeds in metrics.items():
                values = [metric.value() for metric in of_seeds]
                top1.setdefault(name, {}).setdefault(probe, []).append(values)
        print(number + 1, "groups", file=sys.stderr, flush=True)
    draws = np.random.default_rng(0).integers(len(store.split_names()), size=(1000, len(store.split_names())))

    def samples(name: str, probe: str) -> BootstrapSamples:
        values = np.array(top1[name][probe])
        return BootstrapSamples(values.mean(0), values[draws].mean(1))

    return estimates({name: {probe: samples(name, probe) for probe in PROBES} for name in top1})


def videos(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """k-NN and linear probe of the official split, with aggregators trained on more and more videos."""
    unlabelled = FeatureStore(given.unlabelled) if given.unlabelled else None
    all_videos = Videos(FeatureStore(given.store), unlabelled)
    train, groups = subset_ids(all_videos.store, "train"), all_videos.groups
    order = sorted({groups[video_id] for video_id in train}, key=lambda group: uniform_hash(f"growth\0{group}"))
    subsets = {
        f"{count} groups of the training split": [i for i in train if groups[i] in order[:count]]
        for count in (len(order) // 5, len(order) // 2, len(order))
    }
    if unlabelled is not None:
        subsets["training split and unlabelled (transductive)"] = [*train, *all_videos.unlabelled]
    subsets["all labelled (transductive)"] = all_videos.labelled
    if unlabelled is not None:
        subsets["all (transductive)"] = [*all_videos.labelled, *all_videos.unlabelled]
    split = official_split(all_videos.store)
    rows = {BACKBONE_ALONE: feature_row(split, given.seeds)}
    for name, ids in subsets.items():
        trained = [all_videos.trained(ids, seed, given)[0] for seed in range(given.seeds)]
        rows[f"{len(ids)} videos: {name}"] = row_of(split, trained)
        rows[f"{len(ids)} videos: {name}, set token alone"] = row_of(split, trained, base="nothing")
    return estimated(split, rows, given.probing)


class Row(NamedTuple):
    """A representation: of each seed the view of the training videos and that of the test videos."""

    train: list[View]
    test: list[View]


def rows_of(split: ProbeSplit, trained: Sequence[Aggregator]) -> dict[str, Row]:
    """The rows of a probe table, one view per seed."""
    torch.manual_seed(0)
    untrained = [Aggregator(model.feature_width, model.options).eval() for model in trained]
    geometry = View(split.train, "geometry").standardisation(split.refit_rows)
    count = len(trained)
    return {
        GEOMETRY_ALONE: Row(
            [View(split.train, "geometry", standardisation=geometry)] * count,
            [View(split.test, "geometry", standardisation=geometry)] * count,
        ),
        BACKBONE_ALONE: feature_row(split, count),
        RANDOM_AGGREGATOR: row_of(split, untrained),
        TRAINED_AGGREGATOR: row_of(split, trained),
        SET_TOKEN_ALONE: row_of(split, trained, base="nothing"),
    }


def feature_row(split: ProbeSplit, num_seeds: int) -> Row:
    return Row([View(split.train, "feature")] * num_seeds, [View(split.test, "feature")] * num_seeds)


def row_of(
    split: ProbeSplit,
    aggregators: Sequence[Aggregator],
    representing: Sequence[Representing] | None = None,
    base: str = "feature",
) -> Row:
    """The row of these aggregators, one per seed."""
    representing = representing or [Representing()] * len(aggregators)

    def views(dataset: ProbeDataset) -> list[View]:
        return [
            View(dataset, base, Tokens(dataset, aggregator, chosen, Probing().probe_draws), chosen)
            for aggregator, chosen in zip(aggregators, representing, strict=True)
        ]

    return Row(views(split.train), views(split.test))


def measured(split: ProbeSplit, rows: Mapping[str, Row], probing: Probing) -> dict[str, dict[str, list[Metric]]]:
    """k-NN and linear top-1 of each row, once per seed."""
    found: dict[str, dict[str, list[Metric]]] = {}
    for name, row in rows.items():
        for seed, (train, test) in enumerate(zip(row.train, row.test, strict=True)):
            fit_and_selection = split.fit_and_selection_rows(probing.choice_share, seed)
            task = suite.ProbeTask(train, split.targets, *fit_and_selection, split.refit_rows, probing, seed)
            [knn, *_] = suite.knn(task)(test).values()
            linear = suite.linear(task).scores(test, len(split.test))
            for probe, scores in zip(PROBES, (knn, linear), strict=True):
                [metric] = score_metrics(probe, scores, split.test.targets, split.targets)
                found.setdefault(name, {}).setdefault(probe, []).append(metric)
    return found


def estimated(split: ProbeSplit, rows: Mapping[str, Row], probing: Probing) -> dict[str, Any]:
    """The estimates of what is measured on each row."""
    draws = list(resamples_of(split.test.groups, probing.resamples, 0))
    return estimates(
        {
            name: {probe: BootstrapSamples.from_metrics(metrics, draws) for probe, metrics in of_row.items()}
            for name, of_row in measured(split, rows, probing).items()
        }
    )


def estimates(samples: Mapping[str, Mapping[str, BootstrapSamples]]) -> dict[str, Any]:
    """The estimate of every row, and that of its gain over the feature alone in paired draws."""
    found = {name: {probe: of_estimate(s.estimate(0)) for probe, s in row.items()} for name, row in samples.items()}
    for name in samples:
        if name != BACKBONE_ALONE:
            gains = {probe: samples[name][probe] - samples[BACKBONE_ALONE][probe] for probe in PROBES}
            found[f"gain of: {name}"] = {probe: of_estimate(gain.estimate(0)) for probe, gain in gains.items()}
    return found


def options(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One option changed at a time, and k-NN top-1 among the training videos, by which one would choose."""
    all_videos = Videos(FeatureStore(given.store))
    store, ids = all_videos.store, subset_ids(all_videos.store, "train")
    split = official_split(store)
    trained = [all_videos.trained(ids, seed, given)[0] for seed in range(given.seeds)]
    rows = {BACKBONE_ALONE: feature_row(split, given.seeds), "defaults": row_of(split, trained)}
    for name, (representing, weights) in REPRESENTING.items():
        chosen = [representing] * given.seeds
        if weights:
            chosen = [weighted(split, aggregator, representing, weights) for aggregator in trained]
            name += f" (chosen: {', '.join(f'{of_seed.token_weight:g}' for of_seed in chosen)})"
        rows[name] = row_of(split, trained, chosen)
    for name, changed in PRETRAINING.items():
        others = [all_videos.trained(ids, seed, given, **changed)[0] for seed in range(given.seeds)]
        rows[name] = row_of(split, others)
    within = {name: [round(knn_within_training(split, view), 4) for view in row.train] for name, row in rows.items()}
    return {"k-NN top-1 among the training videos": within, **estimated(split, rows, given.probing)}


def position_code(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """What it changes that the position code of a training in bfloat16 is computed in float32."""
    all_videos = Videos(FeatureStore(given.store))
    ids, split = subset_ids(all_videos.store, "train"), official_split(all_videos.store)

    def trained_row() -> Row:
        seeds = range(given.seeds)
        return row_of(split, [all_videos.trained(ids, seed, given, train_precision="bfloat16")[0] for seed in seeds])

    rows = {BACKBONE_ALONE: feature_row(split, given.seeds), "in float32": trained_row()}
    # As it was before: in the precision of the training.
    with patch.object(Aggregator, "_position_code", lambda self, positions: self.position(positions)):
        rows["in bfloat16"] = trained_row()
    return {"rounded": rounded_codes(), **estimated(split, rows, given.probing)}


def rounded_codes() -> dict[str, float]:
    """The codes of 1,000 clips of the whole picture, whose starts are evenly spaced over the video.

    The difference between a code in bfloat16 and in float32, relative to that between two codes a clip apart.
    """
    torch.manual_seed(0)
    model, starts = Aggregator(4, AggregatorOptions()).eval(), torch.linspace(0, 1, 1001)[:-1]
    positions = torch.tensor([1.0, 0, 0, 1, 1, 0, 0]).repeat(len(starts), 1)
    positions[:, 5], positions[:, 6] = starts, starts + 0.001
    with torch.inference_mode():
        exact = model._position_code(positions[None])[0]
        with torch.autocast("cpu", torch.bfloat16):
            coded = model.position(positions).float()
    error, distance = (coded - exact).norm(dim=1), (exact[1:] - exact[:-1]).norm(dim=1)
    return {
        "different start times in float32": len(starts.unique()),
        "different start times in bfloat16": len(starts.bfloat16().unique()),
        "error, in distances of neighbouring clips": round(float(error.mean() / distance.mean()), 2),
    }


def weighted(
    split: ProbeSplit, aggregator: Aggregator, representing: Representing, weights: tuple[float, ...]
) -> Representing:
    """With the weight of the tokens that the training videos choose."""
    probing = Probing(token_weights=weights)
    tokens = Tokens(split.train, aggregator, representing, probing.probe_draws)
    return replace(representing, token_weight=chosen_token_weight(split, tokens, representing, probing))


def knn_within_training(split: ProbeSplit, view: View) -> float:
    """k-NN top-1 among the training videos, each without the votes of its own group."""
    numbers = {group: number for number, group in enumerate(sorted(set(split.train.groups)))}
    groups = torch.tensor([numbers[group] for group in split.train.groups])
    return knn_top1_within(view.videos, split.train.targets, groups, Probing())


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    arguments.add_argument("--steps", type=int, default=600, help="steps of each training")
    arguments.add_argument("--batch", type=int, default=30, help="videos per batch")
    arguments.add_argument("--heads", type=int, default=4096, help="width of the prediction heads; half for the target")
    arguments.add_argument("--threads", type=int, default=2, help="threads of torch")
    arguments.add_argument("--name", default="i3d", help="name of the features, for the file of results")
    cases = arguments.add_subparsers(dest="case", required=True)
    runs = {
        "official": official,
        "leave-one-out": leave_one_out,
        "videos": videos,
        "options": options,
        "position-code": position_code,
    }
    for name in runs:
        case = cases.add_parser(name)
        case.add_argument("store", help="store of the labelled videos")
        if name == "official":
            case.add_argument("--mlp", action="store_true", help="also the MLP probe, minutes per seed")
        else:
            case.add_argument("--one-setting", action="store_true", help="linear probe with the paper's one setting")
        if name == "videos":
            case.add_argument("--unlabelled", help="store of further videos")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    given.probing = Probing(**ONE_SETTING) if getattr(given, "one_setting", False) else Probing()
    with folder_of(given) as folder:
        figures = runs[given.case](folder, given)
    fingerprint = FeatureStore(given.store).fingerprint
    kept = ("backbone", "weights", "input_px", "eval_input_px", "frame_pooling")
    backbone = {name: fingerprint[name] for name in kept if name in fingerprint}
    del given.probing  # --one-setting says it
    given.store = "STORE"  # local paths do not belong in a report
    if getattr(given, "unlabelled", None):
        given.unlabelled = "UNLABELLED"
    report(f"ut_interaction_{given.name}_{given.case.replace('-', '_')}", given, {"backbone": backbone, **figures})


if __name__ == "__main__":
    main()
