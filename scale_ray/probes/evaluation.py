"""A store and its aggregators to a table: every representation, every probe, beside the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scale_ray.aggregator import Aggregator
from scale_ray.config import Ingest, Probing
from scale_ray.errors import UserError
from scale_ray.probes import suite as probes
from scale_ray.probes.bootstrap import BootstrapSamples, Estimate, resamples_of
from scale_ray.probes.data import ProbeDataset, ProbeSplit, load_probe_split
from scale_ray.probes.inputs import SetInputs, Tokens, View
from scale_ray.probes.knn import retrieval
from scale_ray.probes.metrics import Metric, cluster_metrics, mean_metric, score_metrics
from scale_ray.probes.suite import ProbeTask
from scale_ray.probes.table import ProbeRow, ProbeTable
from scale_ray.probes.targets import CLASSES, MULTILABEL, NUMBERS, Targets, read_targets
from scale_ray.store import FeatureStore

GEOMETRY_ALONE = "position and geometry alone"
BACKBONE_ALONE = "backbone feature alone"
RANDOM_AGGREGATOR = "with random aggregator"
TRAINED_AGGREGATOR = "with trained aggregator"
SET_TOKEN_ALONE = "trained aggregator's set token alone"

_RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class _Representation:
    """One row of the table: both sides as it sees them, and the aggregator where it has one."""

    name: str
    train: View
    test: View
    aggregator: Aggregator | None


@dataclass
class FigureData:
    """What the pictures show, of the first seed: sides, predictions of the linear probe, centred vectors of videos."""

    sides: ProbeSplit
    predictions: dict[str, Tensor] = field(default_factory=dict)
    train_vectors: dict[str, Tensor] = field(default_factory=dict)
    test_vectors: dict[str, Tensor] = field(default_factory=dict)


def probe_table(
    store: FeatureStore,
    aggregators: Sequence[Aggregator],
    probing: Probing,
    *,
    split: str | None = None,
    ensemble: int = 0,
    ingest: Ingest | None = None,
    progress: Callable[[int, str], None] = lambda _count, _name: None,
) -> tuple[ProbeTable, FigureData]:
    """Every chosen probe of every representation, from the clips that the store holds.

    FittedHeads on the `train` clips of the training videos; the test videos are seen through their `eval` clips
    and only scored, once for each seed, when all is chosen. Seed n takes aggregator n; of fewer aggregators
    than seeds they come round again. With `ensemble` a video's clips are dealt into sets of so many.
    `progress` is told how many representations are done, and the last one's name.

    Raises
    ------
    UserError
        Where targets, training or test videos are missing, a group straddles the split, or features do
        not fit on this machine.
    """
    split = split or next(iter(store.split_names()), None)
    targets = read_targets(store, probing.target)
    if split is None:
        raise UserError(f"expected labelled training videos, found none in {store.location}")
    sides = load_probe_split(store, targets, split, ingest or Ingest())
    num_seeds = max(probing.probe_seeds, len(aggregators))
    pictured = FigureData(sides)
    measured: dict[str, dict[str, list[Metric]]] = {}
    fixed: dict[tuple[str, int], list[Metric]] = {}
    done = 0
    for number in range(num_seeds):
        which = number % len(aggregators)
        for row in _representations(sides, aggregators[which], probing, ensemble, probing.probe_seed + number):
            # What depends on the aggregator alone is measured once for each.
            aggregator = -1 if row.aggregator is None else which
            key = (row.name, number if row.name == RANDOM_AGGREGATOR else aggregator)
            if key not in fixed:
                fixed[key] = _without_training(row, sides, probing)
            found = [*fixed[key], *_probed(row, sides, probing, probing.probe_seed + number, pictured, number == 0)]
            of_row = measured.setdefault(row.name, {})
            for one in found:
                of_row.setdefault(one.name, []).append(one)
            done += 1
            progress(done, row.name)
        if not any(measured.values()):
            raise UserError(
                f"probes: expected one that applies to {targets.kind}, found {','.join(probing.chosen_probes)}"
            )
    return _table(sides, measured, probing, num_seeds), pictured


def num_representations(probing: Probing, num_aggregators: int) -> int:
    """How many representations `probe_table` goes through."""
    return 5 * max(probing.probe_seeds, num_aggregators)


def _representations(
    sides: ProbeSplit, aggregator: Aggregator, probing: Probing, ensemble: int, seed: int
) -> Iterator[_Representation]:
    """One after the other, so that what is computed of one is gone before the next."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = Aggregator(aggregator.feature_width, aggregator.options).eval()

    def tokens(of: Aggregator) -> tuple[Tokens, Tokens]:
        return (
            Tokens(sides.train, of, ensemble, probing.probe_draws),
            Tokens(sides.test, of, ensemble, probing.probe_draws),
        )

    def row(
        name: str, base: str, of: tuple[Tokens, Tokens] | None = None, using: Aggregator | None = None
    ) -> _Representation:
        train, test = of or (None, None)
        return _Representation(name, View(sides.train, base, train), View(sides.test, base, test), using)

    yield row(GEOMETRY_ALONE, "geometry")
    yield row(BACKBONE_ALONE, "feature")
    yield row(RANDOM_AGGREGATOR, "feature", tokens(untrained), untrained)
    trained = tokens(aggregator)
    yield row(TRAINED_AGGREGATOR, "feature", trained, aggregator)
    yield row(SET_TOKEN_ALONE, "nothing", trained, aggregator)


def _lessons(row: _Representation, sides: ProbeSplit, probing: Probing, seed: int) -> ProbeTask:
    fit_rows, selection_rows = sides.parts(probing.choice_share, seed)
    return ProbeTask(row.train, sides.targets, fit_rows, selection_rows, sides.refit, probing, seed)


def _without_training(row: _Representation, sides: ProbeSplit, probing: Probing) -> list[Metric]:
    """k-NN and retrieval: nothing in them is drawn."""
    targets, measured = sides.targets, []
    if "knn" in probing.chosen_probes:
        scores = probes.knn(_lessons(row, sides, probing, probing.probe_seed))(row.test)
        first = (probing.knn_k[0], probing.knn_temperature[0])
        for (k, temperature), of in scores.items():
            name = "knn" if (k, temperature) == first else f"knn_k{k}_t{temperature:g}"
            measured += score_metrics(name, of, sides.test.targets, targets)
    if "retrieval" in probing.chosen_probes and targets.kind != NUMBERS:
        bank = row.train.centred(sides.refit)
        dense = targets.dense(sides.train.targets)[sides.refit]
        queries, wanted = row.test.centred(), targets.dense(sides.test.targets)
        hits, precision = retrieval(bank, dense, queries, wanted, _RECALL_AT)
        measured += [mean_metric(f"retrieval_recall_at_{k}", found) for k, found in hits.items()]
        measured.append(mean_metric("retrieval_map", precision))
    return measured


def _probed(
    row: _Representation, sides: ProbeSplit, probing: Probing, seed: int, pictured: FigureData, is_first: bool
) -> list[Metric]:
    """What is trained or drawn: fitted on the training side, and then scored on the test side."""
    lessons, targets, test = _lessons(row, sides, probing, seed), sides.targets, sides.test
    chosen, measured = probing.chosen_probes, []

    def score(name: str, probe: probes.TrainedProbe, inputs: View | SetInputs) -> Tensor:
        scores = probe.scores(inputs, len(test))
        measured.extend(score_metrics(name, scores, test.targets, targets))
        return scores

    if "linear" in chosen:
        scores = score("linear", probes.linear(lessons), row.test)
        if is_first and targets.kind == CLASSES:
            pictured.predictions[row.name] = scores.argmax(1)
    if "mlp" in chosen and row.aggregator is None:
        score("mlp", probes.mlp(lessons), row.test)
    if "attentive" in chosen:
        score("attentive", probes.attentive(lessons), row.test)
    if "finetuned" in chosen and row.aggregator is not None and row.name != SET_TOKEN_ALONE:
        score("finetuned", probes.finetuned(lessons, row.aggregator), SetInputs(test))
    if "lowshot" in chosen:
        for name, probe in probes.low_shot(lessons).items():
            score(name, probe, row.test)
    num_classes = len(set(test.targets.tolist())) if targets.kind == CLASSES else 0
    if "clustering" in chosen and num_classes > 1:  # all clusters agree with a single class
        found = probes.clusters(row.test, num_classes, seed)
        measured += cluster_metrics(found, test.targets)
    if is_first and row.name in (BACKBONE_ALONE, TRAINED_AGGREGATOR):
        pictured.train_vectors[row.name], pictured.test_vectors[row.name] = row.train.centred(), row.test.centred()
    return measured


def _table(
    sides: ProbeSplit, measured: dict[str, dict[str, list[Metric]]], probing: Probing, num_seeds: int
) -> ProbeTable:
    resamples = list(resamples_of(sides.test.groups, probing.resamples, probing.probe_seed))
    drawn = {
        row: {name: BootstrapSamples.of(of, resamples) for name, of in of_row.items()}
        for row, of_row in measured.items()
    }
    # How much the trained aggregator is ahead of the feature by itself, video by video.
    alone = drawn[BACKBONE_ALONE]
    gains = {}
    for name, of in drawn[TRAINED_AGGREGATOR].items():
        if name in alone:
            more_is_better = measured[TRAINED_AGGREGATOR][name][0].more_is_better
            gains[name] = of - alone[name] if more_is_better else alone[name] - of

    def estimates(of_row: dict[str, BootstrapSamples]) -> dict[str, Estimate]:
        return {name: of.estimate(probing.probe_seed) for name, of in of_row.items()}

    return ProbeTable(
        rows=[ProbeRow(row, estimates(of_row)) for row, of_row in drawn.items()],
        gains=estimates(gains),
        chance=_chance(sides.targets, sides.train, sides.test, sides.refit),
        kind=sides.targets.kind,
        split=sides.split,
        num_train_videos=len(sides.refit),
        num_test_videos=len(sides.test),
        num_test_groups=len(set(sides.test.groups)),
        num_classes=0 if sides.targets.kind == NUMBERS else len(sides.targets.names),
        num_seeds=num_seeds,
    )


def _chance(targets: Targets, train: ProbeDataset, test: ProbeDataset, rows: Tensor) -> float:
    """What is reached without looking at a video: the most frequent class, equal scores, the training mean."""
    if targets.kind == CLASSES:
        return float((test.targets == train.targets[rows].mode().values).float().mean())
    if targets.kind == MULTILABEL:
        equal = torch.zeros_like(test.targets)
    else:
        equal = train.targets[rows].mean(0).expand_as(test.targets)
    [measured] = score_metrics("chance", equal, test.targets, targets)
    return measured.value()
