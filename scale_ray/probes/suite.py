"""The probes: what can be predicted from a representation (section 5 of the method).

Each takes a `ProbeTask`, which holds training videos alone, and returns something that scores any other view. So test
videos cannot influence a fit or a selection.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.aggregator import Aggregator
from scale_ray.config import Probing
from scale_ray.hashing import uniform_hash
from scale_ray.probes.fitting import FittedHeads, Inputs, Problem, Setting, TrainingSchedule, fit_heads
from scale_ray.probes.heads import AttentiveHead, FineTunedHead, LinearHead, MlpHead
from scale_ray.probes.inputs import SetInputs, View
from scale_ray.probes.knn import knn_scores
from scale_ray.probes.metrics import score_metrics
from scale_ray.probes.targets import CLASSES, MULTILABEL, Targets


@dataclass(frozen=True)
class ProbeTask:
    """What a probe may learn from: one representation of the training videos, and the use of each row.

    Settings are fitted on `fit_rows` and compared on `selection_rows`; the best is fitted on `refit_rows`.
    """

    view: View
    target_spec: Targets
    fit_rows: Tensor
    selection_rows: Tensor
    refit_rows: Tensor
    probing: Probing
    seed: int

    @property
    def width(self) -> int:
        """The width d of the representation."""
        return self.view.whole(torch.arange(1)).shape[2]

    @property
    def settings(self) -> list[Setting]:
        """The grid; its first point is the setting of the paper."""
        return [Setting(*pair) for pair in product(self.probing.learning_rates, self.probing.weight_decays)]

    def schedule(self, *, deep: bool = False) -> TrainingSchedule:
        """The schedule given by the options; that of the `deep` probes if asked for."""
        probing = self.probing
        return TrainingSchedule(
            batch=probing.deep_batch if deep else probing.probe_batch,
            set_size=min(probing.probe_set_size, self.view.dataset.num_clips),
            epochs=probing.deep_epochs if deep else probing.probe_epochs,
            min_steps=probing.deep_min_steps if deep else probing.probe_min_steps,
            num_draws=probing.probe_draws,
            warmup_share=probing.probe_warmup_share,
        )


@dataclass(frozen=True)
class TrainedProbe:
    """A fitted head and the setting that was selected for it."""

    fitted: FittedHeads
    setting: Setting

    def scores(self, inputs: Inputs, num_videos: int) -> Tensor:
        """Scores (videos, K) of the first `num_videos` videos of a dataset."""
        return self.fitted.scores(inputs, torch.arange(num_videos))[0]


def knn(task: ProbeTask) -> Callable[[View], Mapping[tuple[int, float], Tensor]]:
    """Weighted k-NN with the training videos as the bank; scores a view, by k and temperature."""
    rows, probing = task.refit_rows, task.probing
    bank = task.view.centred(rows)
    targets = task.target_spec.dense(task.view.dataset.targets)[rows]
    return lambda view: knn_scores(bank, targets, view.centred(), probing.knn_k, probing.knn_temperature)


def linear(task: ProbeTask) -> TrainedProbe:
    """A linear classifier of every clip, trained on random sets; the aggregator is frozen.

    Differs from the paper: the representation is standardised with the statistics of the clips that are
    learned from, so that one range of learning rates suits every backbone; a small corpus gets more
    epochs; and the setting is selected on training or validation videos instead of the test split.
    """
    width = task.width
    return _select_and_fit(task, lambda: LinearHead(width, task.target_spec.width), task.schedule())


def mlp(task: ProbeTask) -> TrainedProbe:
    """The paper's non-linear baseline of every clip, trained as `linear`: on the same sets, for as many steps."""
    width = task.width
    return _select_and_fit(task, lambda: MlpHead(width, task.target_spec.width), task.schedule())


def attentive(task: ProbeTask) -> TrainedProbe:
    """Attention of one learned query over the clips of a set."""
    width = task.width
    schedule = task.schedule(deep=True)
    return _select_and_fit(task, lambda: AttentiveHead(width, task.target_spec.width), schedule)


def finetuned(task: ProbeTask, aggregator: Aggregator) -> TrainedProbe:
    """Aggregator and linear classifier trained together, on a copy; `task.view` is the view of this aggregator."""
    schedule = task.schedule(deep=True)
    mean, scale = task.view.standardisation(task.fit_rows)

    def make_head() -> nn.Module:
        model, outputs = copy.deepcopy(aggregator), task.target_spec.width
        return FineTunedHead(model, mean, scale, outputs, task.view.representing)

    return _select_and_fit(task, make_head, schedule, SetInputs(task.view.dataset))


def low_shot(task: ProbeTask) -> dict[str, TrainedProbe]:
    """The linear probe on few labels: a fraction of each class, or a number of videos per class; by metric prefix.

    Takes the first setting of the grid, since selecting one would need more labels. The draws are nested: those with
    fewer labels are subsets of those with more. Without classes only fractions apply, to all videos.
    """
    width = task.width
    probes = {}
    for amount in task.probing.low_shot:
        if amount >= 1 and task.target_spec.kind != CLASSES:
            continue
        rows = low_shot_rows(task, amount)
        fitted = fit_heads(
            _problem(task, task.view, rows),
            rows,
            lambda: LinearHead(width, task.target_spec.width),
            task.settings[:1],
            task.schedule(),
            task.seed,
        )
        name = f"lowshot_{amount:g}_per_class" if amount >= 1 else f"lowshot_{amount:g}"
        probes[name] = TrainedProbe(fitted, task.settings[0])
    return probes


def clusters(view: View, num_clusters: int, seed: int) -> np.ndarray:
    """The k-means cluster of every video, int (videos,), from representations centred and at unit norm."""
    # Imported here, as elsewhere in this package: scikit-learn takes a second, and few processes need it.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    videos = view.centred().numpy()
    with warnings.catch_warnings():
        # If all videos are equal, as their geometry may be, there are fewer clusters; this needs no warning.
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        return KMeans(min(num_clusters, len(videos)), n_init=10, random_state=seed).fit_predict(videos)


def low_shot_rows(task: ProbeTask, amount: float) -> Tensor:
    """Rows of the training videos that keep their label, int64, sorted: a fraction of each class, or a number."""
    dataset, rows = task.view.dataset, task.refit_rows.tolist()
    order = sorted(rows, key=lambda row: uniform_hash(f"low-shot {task.seed}\0{dataset.video_ids[row]}"))
    if task.target_spec.kind != CLASSES:
        return torch.tensor(sorted(order[: max(round(amount * len(order)), 2)]))
    rows_by_class: dict[int, list[int]] = {}
    for row in order:
        rows_by_class.setdefault(int(dataset.targets[row]), []).append(row)
    kept = [m[: int(amount) if amount >= 1 else max(round(amount * len(m)), 1)] for m in rows_by_class.values()]
    return torch.tensor(sorted(row for members in kept for row in members))


def _problem(task: ProbeTask, inputs: Inputs, rows: Tensor) -> Problem:
    if isinstance(inputs, View):
        mean, scale = inputs.standardisation(rows)
    else:  # the head standardises its inputs itself
        mean, scale = torch.zeros(1), torch.ones(1)
    return Problem(inputs, task.view.dataset.targets, task.target_spec, mean, scale)


def _select_and_fit(
    task: ProbeTask, make_head: Callable[[], nn.Module], schedule: TrainingSchedule, inputs: Inputs | None = None
) -> TrainedProbe:
    """Fit all settings on one part of the training videos, compare them on the other, fit the best on all of them."""
    inputs, settings = inputs or task.view, task.settings
    best = settings[0]
    if len(settings) > 1 and len(task.selection_rows):
        rows = task.fit_rows
        grid = fit_heads(_problem(task, inputs, rows), rows, make_head, settings, schedule, task.seed)
        targets = task.view.dataset.targets[task.selection_rows]
        scores = grid.scores(inputs, task.selection_rows)
        ranks = [selection_score(of_setting, targets, task.target_spec) for of_setting in scores]
        best = settings[max(range(len(settings)), key=ranks.__getitem__)]
    rows = task.refit_rows
    fitted = fit_heads(_problem(task, inputs, rows), rows, make_head, [best], schedule, task.seed)
    return TrainedProbe(fitted, best)


def selection_score(scores: Tensor, targets: Tensor, target_spec: Targets) -> tuple[float, float]:
    """The metric of the probe, then the likelihood, since few videos cannot separate all settings by the metric."""
    [metric] = score_metrics("choice", scores, targets, target_spec)
    if target_spec.kind == CLASSES:
        likelihood = -F.nll_loss(scores.clamp(min=1e-12).log(), targets)
    elif target_spec.kind == MULTILABEL:
        likelihood = -F.binary_cross_entropy(scores, targets)
    else:
        likelihood = -F.mse_loss(scores, targets)
    value = metric.value()
    return (value if metric.more_is_better else -value), float(likelihood)
