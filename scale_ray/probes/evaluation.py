"""Runs every chosen probe on every representation of a store's videos, and collects the results in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from scale_ray.aggregator import Aggregator
from scale_ray.config import Ingest, Probing, Representing
from scale_ray.errors import UserError
from scale_ray.probes import suite
from scale_ray.probes.bootstrap import BootstrapSamples, Estimate, resamples_of
from scale_ray.probes.data import ProbeDataset, ProbeSplit, load_probe_split
from scale_ray.probes.inputs import SetInputs, Tokens, View
from scale_ray.probes.knn import retrieval
from scale_ray.probes.metrics import Metric, cluster_metrics, mean_metric, score_metrics
from scale_ray.probes.suite import ProbeTask
from scale_ray.probes.table import ProbeRow, ProbeTable
from scale_ray.probes.targets import CLASSES, MULTILABEL, NUMBERS, Targets, read_targets
from scale_ray.probes.token_weight import chosen_token_weight
from scale_ray.store import FeatureStore

GEOMETRY_ALONE = "position and geometry alone"
BACKBONE_ALONE = "backbone feature alone"
RANDOM_AGGREGATOR = "with random aggregator"
TRAINED_AGGREGATOR = "with trained aggregator"
SET_TOKEN_ALONE = "trained aggregator's set token alone"
# The same row if the representation has other tokens than the set token.
TOKENS_ALONE = "trained aggregator's tokens alone"

_RECALL_AT = (1, 5, 10)


@dataclass
class FigureData:
    """What the figures of a split show, from the first seed, by representation.

    `predictions` of the linear probe, int64 (test videos,), if the targets are classes; centred vectors of the
    training and test videos, float32 (videos, d), of the backbone alone and of the trained aggregator.
    """

    split: ProbeSplit
    predictions: dict[str, Tensor] = field(default_factory=dict)
    train_vectors: dict[str, Tensor] = field(default_factory=dict)
    test_vectors: dict[str, Tensor] = field(default_factory=dict)


def probe_table(
    store: FeatureStore,
    aggregators: Sequence[Aggregator],
    probing: Probing,
    *,
    split: str | None = None,
    representing: Representing | None = None,
    ingest: Ingest | None = None,
    progress: Callable[[int, str], None] = lambda _count, _name: None,
) -> tuple[ProbeTable, FigureData]:
    """Run every chosen probe on every representation of the clips in a store.

    Probes are fitted on the clips of mode `probing.probe_mode` of the training videos. The test videos, seen through
    their `eval` clips, are only scored, once per seed, after all selection. Seed n uses aggregator n; if there are more
    seeds than aggregators, these repeat. `representing` says what the representation of an aggregator consists of;
    with `probing.token_weights` its weight is chosen among the training videos. `progress` is called with the number of
    representations that are done, and the name of the last one.

    Raises
    ------
    UserError
        If targets, training videos or test videos are missing, if training and test videos share a group, or if the
        features do not fit on this machine.
    """
    split = split or next(iter(store.split_names()), None)
    targets = read_targets(store, probing.target)
    if split is None:
        raise UserError(f"expected labelled training videos, found none in {store.location}")
    probe_split = load_probe_split(store, targets, split, ingest or Ingest(), probing.probe_mode)
    evaluation = _Evaluation(probe_split, aggregators, probing, representing or Representing())
    done = 0
    for number in range(evaluation.num_seeds):
        for name in evaluation.run_seed(number):
            done += 1
            progress(done, name)
        if not any(evaluation.metrics.values()):
            raise UserError(
                f"probes: expected one that applies to {targets.kind}, found {','.join(probing.chosen_probes)}"
            )
    return _table(evaluation), evaluation.figures


def num_representations(probing: Probing, num_aggregators: int) -> int:
    """How many representations `probe_table` evaluates, over all seeds."""
    return 5 * max(probing.probe_seeds, num_aggregators)


@dataclass(frozen=True)
class _Representation:
    """One row of the table: views of the training and test videos, and the aggregator if it has one."""

    name: str
    train: View
    test: View
    aggregator: Aggregator | None


class _Evaluation:
    """The metrics of all representations of a split, collected seed by seed."""

    def __init__(
        self, split: ProbeSplit, aggregators: Sequence[Aggregator], probing: Probing, representing: Representing
    ) -> None:
        self.split, self.probing, self.figures = split, probing, FigureData(split)
        self.num_seeds, self.num_aggregators = max(probing.probe_seeds, len(aggregators)), len(aggregators)
        # representation -> name of the metric -> the metric of each seed
        self.metrics: dict[str, dict[str, list[Metric]]] = {}
        # representation -> the weight of its tokens that was chosen for each seed
        self.token_weights: dict[str, list[float]] = {}
        self._aggregators, self._representing = aggregators, representing
        self._deterministic: dict[tuple[str, int], list[Metric]] = {}

    def run_seed(self, number: int) -> Iterator[str]:
        """Run the probes of one seed; yields the name of each representation after its last probe."""
        index, seed = number % len(self._aggregators), self.probing.probe_seed + number
        for row in _representations(self.split, self._aggregators[index], self.probing, self._representing, seed):
            if row.name in (RANDOM_AGGREGATOR, TRAINED_AGGREGATOR) and self.probing.token_weights:
                self.token_weights.setdefault(row.name, []).append(row.train.representing.token_weight)
            collected = self.metrics.setdefault(row.name, {})
            # Deterministic probes run once per aggregator, once for rows without one; the random one differs by seed.
            aggregator = -1 if row.aggregator is None else index
            key = (row.name, number if row.name == RANDOM_AGGREGATOR else aggregator)
            if key not in self._deterministic:
                self._deterministic[key] = self._run(_DETERMINISTIC_PROBES, row, self.probing.probe_seed, None)
            figures = self.figures if number == 0 else None
            for metric in [*self._deterministic[key], *self._run(_SEEDED_PROBES, row, seed, figures)]:
                collected.setdefault(metric.name, []).append(metric)
            if figures is not None and row.name in (BACKBONE_ALONE, TRAINED_AGGREGATOR):
                figures.train_vectors[row.name] = row.train.centred()
                figures.test_vectors[row.name] = row.test.centred()
            yield row.name

    def _run(
        self, table: Mapping[str, _Probe], row: _Representation, seed: int, figures: FigureData | None
    ) -> list[Metric]:
        """The metrics of the chosen probes of a table, in its order."""
        split = self.split
        fit_rows, selection_rows = split.fit_and_selection_rows(self.probing.choice_share, seed)
        task = ProbeTask(row.train, split.targets, fit_rows, selection_rows, split.refit_rows, self.probing, seed)
        run = _Run(row, split, task, figures)
        return [metric for name, probe in table.items() if name in self.probing.chosen_probes for metric in probe(run)]


def _representations(
    split: ProbeSplit, aggregator: Aggregator, probing: Probing, representing: Representing, seed: int
) -> Iterator[_Representation]:
    """The rows of the table, one by one, so that the memory of a row is free before the next."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = Aggregator(aggregator.feature_width, aggregator.options).eval()

    def tokens(model: Aggregator) -> tuple[Tokens, Tokens]:
        return (
            Tokens(split.train, model, representing, probing.probe_draws),
            Tokens(split.test, model, representing, probing.probe_draws),
        )

    def row(
        name: str, base: str, tokens: tuple[Tokens, Tokens] | None = None, model: Aggregator | None = None
    ) -> _Representation:
        train, test = tokens or (None, None)
        options = representing
        if train is not None and base == "feature" and probing.token_weights:
            weight = chosen_token_weight(split, train, representing, probing)
            options = replace(representing, token_weight=weight)
        views = View(split.train, base, train, options), View(split.test, base, test, options)
        return _Representation(name, *views, model)

    standardisation = View(split.train, "geometry").standardisation(split.refit_rows)
    yield _Representation(
        GEOMETRY_ALONE,
        View(split.train, "geometry", standardisation=standardisation),
        View(split.test, "geometry", standardisation=standardisation),
        None,
    )
    yield row(BACKBONE_ALONE, "feature")
    yield row(RANDOM_AGGREGATOR, "feature", tokens(untrained), untrained)
    trained = tokens(aggregator)
    yield row(TRAINED_AGGREGATOR, "feature", trained, aggregator)
    alone = SET_TOKEN_ALONE if representing.token_parts == ("c",) else TOKENS_ALONE
    yield row(alone, "nothing", trained, aggregator)


@dataclass(frozen=True)
class _Run:
    """The arguments of one probe: a representation, its split, what the probe may learn from, and its seed (`task`).

    `figures` takes the data of the figures, in the first seed only.
    """

    row: _Representation
    split: ProbeSplit
    task: ProbeTask
    figures: FigureData | None

    def scores(self, probe: suite.TrainedProbe, inputs: View | SetInputs | None = None) -> Tensor:
        """Scores (videos, K) of the test videos; `inputs` is the view of the row unless given."""
        return probe.scores(inputs or self.row.test, len(self.split.test))

    def metrics(self, name: str, scores: Tensor) -> list[Metric]:
        return score_metrics(name, scores, self.split.test.targets, self.split.targets)


# A probe returns its metrics, none if it does not apply to the representation or to the kind of targets.
_Probe = Callable[[_Run], list[Metric]]


def _knn(run: _Run) -> list[Metric]:
    probing, metrics = run.task.probing, []
    default = (probing.knn_k[0], probing.knn_temperature[0])
    for (k, temperature), scores in suite.knn(run.task)(run.row.test).items():
        name = "knn" if (k, temperature) == default else f"knn_k{k}_t{temperature:g}"
        metrics += run.metrics(name, scores)
    return metrics


def _retrieval(run: _Run) -> list[Metric]:
    """Not for numbers, which have no relevant videos."""
    split = run.split
    if split.targets.kind == NUMBERS:
        return []
    bank = run.row.train.centred(split.refit_rows)
    bank_targets = split.targets.dense(split.train.targets)[split.refit_rows]
    queries, query_targets = run.row.test.centred(), split.targets.dense(split.test.targets)
    hits, precision = retrieval(bank, bank_targets, queries, query_targets, _RECALL_AT)
    recalls = [mean_metric(f"retrieval_recall_at_{k}", values) for k, values in hits.items()]
    return [*recalls, mean_metric("retrieval_map", precision)]


def _linear(run: _Run) -> list[Metric]:
    scores = run.scores(suite.linear(run.task))
    if run.figures is not None and run.split.targets.kind == CLASSES:
        run.figures.predictions[run.row.name] = scores.argmax(1)
    return run.metrics("linear", scores)


def _mlp(run: _Run) -> list[Metric]:
    """Only without an aggregator: it is the non-linear baseline of the aggregator."""
    return [] if run.row.aggregator is not None else run.metrics("mlp", run.scores(suite.mlp(run.task)))


def _attentive(run: _Run) -> list[Metric]:
    return run.metrics("attentive", run.scores(suite.attentive(run.task)))


def _finetuned(run: _Run) -> list[Metric]:
    """Only for the whole representation of an aggregator, which is what it trains."""
    if run.row.aggregator is None or run.row.name in (SET_TOKEN_ALONE, TOKENS_ALONE):
        return []
    probe = suite.finetuned(run.task, run.row.aggregator)
    return run.metrics("finetuned", run.scores(probe, SetInputs(run.split.test)))


def _low_shot(run: _Run) -> list[Metric]:
    probes = suite.low_shot(run.task)
    return [metric for name, probe in probes.items() for metric in run.metrics(name, run.scores(probe))]


def _clustering(run: _Run) -> list[Metric]:
    """Only if the test videos are of several classes: all clusters agree with a single class."""
    targets = run.split.test.targets
    num_classes = len(set(targets.tolist())) if run.split.targets.kind == CLASSES else 0
    if num_classes < 2:
        return []
    return cluster_metrics(suite.clusters(run.row.test, num_classes, run.task.seed), targets)


# The probes by their names in `config.PROBES`, in the order in which they run. To add one, write a function and add a
# line here. Those without random draws run once per representation, the others once per seed.
_DETERMINISTIC_PROBES: Mapping[str, _Probe] = {
    "knn": _knn,
    "retrieval": _retrieval,
}
_SEEDED_PROBES: Mapping[str, _Probe] = {
    "linear": _linear,
    "mlp": _mlp,
    "attentive": _attentive,
    "finetuned": _finetuned,
    "lowshot": _low_shot,
    "clustering": _clustering,
}


def _table(evaluation: _Evaluation) -> ProbeTable:
    split, probing, metrics = evaluation.split, evaluation.probing, evaluation.metrics
    draws = list(resamples_of(split.test.groups, probing.resamples, probing.probe_seed))
    samples = {
        row: {name: BootstrapSamples.from_metrics(of_seeds, draws) for name, of_seeds in by_name.items()}
        for row, by_name in metrics.items()
    }

    def estimates(by_name: Mapping[str, BootstrapSamples]) -> dict[str, Estimate]:
        return {name: sample.estimate(probing.probe_seed) for name, sample in by_name.items()}

    return ProbeTable(
        rows=[ProbeRow(row, estimates(by_name)) for row, by_name in samples.items()],
        gains=estimates(_gains(samples[TRAINED_AGGREGATOR], samples[BACKBONE_ALONE], metrics[TRAINED_AGGREGATOR])),
        chance=_chance(split.targets, split.train, split.test, split.refit_rows),
        kind=split.targets.kind,
        split=split.name,
        num_train_videos=len(split.refit_rows),
        num_test_videos=len(split.test),
        num_test_groups=len(set(split.test.groups)),
        num_classes=0 if split.targets.kind == NUMBERS else len(split.targets.names),
        num_seeds=evaluation.num_seeds,
        num_aggregators=evaluation.num_aggregators,
        token_weights=evaluation.token_weights,
    )


def _gains(
    ours: Mapping[str, BootstrapSamples], baseline: Mapping[str, BootstrapSamples], metrics: Mapping[str, list[Metric]]
) -> dict[str, BootstrapSamples]:
    """How much better ours is than the baseline, in paired draws, for the metrics that both have."""
    return {
        name: ours[name] - baseline[name] if metrics[name][0].more_is_better else baseline[name] - ours[name]
        for name in ours
        if name in baseline
    }


def _chance(targets: Targets, train: ProbeDataset, test: ProbeDataset, rows: Tensor) -> float:
    """The metric reached without seeing a video: with the most frequent class, equal scores or the training mean."""
    if targets.kind == CLASSES:
        return float((test.targets == train.targets[rows].mode().values).float().mean())
    if targets.kind == MULTILABEL:
        scores = torch.zeros_like(test.targets)
    else:
        scores = train.targets[rows].mean(0).expand_as(test.targets)
    [metric] = score_metrics("chance", scores, test.targets, targets)
    return metric.value()
