"""The probes: what can be told from a representation (section 5 of the method).

Each takes `ProbeTask`, which hold the training side alone, and returns what scores any other view: nothing of
the test split can reach a fit or a choice, since nothing of it is there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.aggregator import Aggregator
from scale_ray.config import Probing
from scale_ray.hashing import uniform_hash
from scale_ray.probes.fitting import FittedHeads, Inputs, Problem, Setting, TrainingSchedule, fit
from scale_ray.probes.heads import AttentiveHead, FineTunedHead, LinearHead, MlpHead
from scale_ray.probes.inputs import SetInputs, View
from scale_ray.probes.knn import knn_scores
from scale_ray.probes.metrics import score_metrics
from scale_ray.probes.targets import CLASSES, MULTILABEL, Targets


@dataclass(frozen=True)
class ProbeTask:
    """What a probe may learn from: one representation of the training side, and which rows are for what.

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
    def settings(self) -> list[Setting]:
        """The grid; its first point is the paper's setting."""
        return [Setting(*pair) for pair in product(self.probing.learning_rates, self.probing.weight_decays)]

    def course(self, *, batch: int | None = None, set_size: int | None = None, deep: bool = False) -> TrainingSchedule:
        probing, num_clips = self.probing, self.view.side.num_clips
        return TrainingSchedule(
            batch=batch or probing.probe_batch,
            set_size=min(set_size or probing.probe_set_size, num_clips),
            epochs=probing.deep_epochs if deep else probing.probe_epochs,
            min_steps=probing.deep_min_steps if deep or set_size == 1 else probing.probe_min_steps,
            num_draws=probing.probe_draws,
        )


@dataclass(frozen=True)
class TrainedProbe:
    """A fitted head and the setting that was chosen for it."""

    fitted: FittedHeads
    setting: Setting

    def scores(self, inputs: Inputs, num_videos: int) -> Tensor:
        """Scores (videos, K) of all videos of a side."""
        return self.fitted.scores(inputs, torch.arange(num_videos))[0]


def knn(lessons: ProbeTask) -> Callable[[View], Mapping[tuple[int, float], Tensor]]:
    """Weighted k-NN with the training split as bank, for every k and temperature."""
    rows, probing = lessons.refit_rows, lessons.probing
    bank = lessons.view.centred(rows)
    targets = lessons.target_spec.dense(lessons.view.side.targets)[rows]
    return lambda view: knn_scores(bank, targets, view.centred(), probing.knn_k, probing.knn_temperature)


def linear(lessons: ProbeTask) -> TrainedProbe:
    """A linear classifier on every clip, trained on random sets; the aggregator is frozen.

    Differs from the paper: the representation is standardised with the statistics of the clips that are
    learned from, so that one range of learning rates suits every backbone; a small corpus gets more
    epochs; and the setting is chosen on validation videos instead of the test split.
    """
    width = lessons.view.whole(torch.arange(1)).shape[2]
    return _select_and_fit(lessons, lambda: LinearHead(width, lessons.target_spec.width), lessons.course())


def mlp(lessons: ProbeTask) -> TrainedProbe:
    """The paper's non-linear baseline, on single clips: what could be had from the feature without any set."""
    width = lessons.view.whole(torch.arange(1)).shape[2]
    return _select_and_fit(lessons, lambda: MlpHead(width, lessons.target_spec.width), lessons.course(set_size=1))


def attentive(lessons: ProbeTask) -> TrainedProbe:
    """One learned query over the clips of a set."""
    width = lessons.view.whole(torch.arange(1)).shape[2]
    course = lessons.course(batch=lessons.probing.deep_batch, deep=True)
    return _select_and_fit(lessons, lambda: AttentiveHead(width, lessons.target_spec.width), course)


def finetuned(lessons: ProbeTask, aggregator: Aggregator) -> TrainedProbe:
    """Aggregator and linear classifier trained together; `lessons.view` is `[x, c]` of the aggregator as it is."""
    import copy

    course = lessons.course(batch=lessons.probing.deep_batch, deep=True)
    mean, scale = lessons.view.standardisation(lessons.fit_rows)

    def head() -> nn.Module:
        return FineTunedHead(copy.deepcopy(aggregator), mean, scale, lessons.target_spec.width)

    return _select_and_fit(lessons, head, course, SetInputs(lessons.view.side))


def low_shot(lessons: ProbeTask) -> dict[str, TrainedProbe]:
    """The linear probe on few labels: shares of each class, or so many videos of each class.

    The setting is the first of the grid: to choose one would take labels of its own. The draws are nested, the
    fewer labels a part of the more. Without classes only shares, of all videos.
    """
    width = lessons.view.whole(torch.arange(1)).shape[2]
    probes = {}
    for amount in lessons.probing.low_shot:
        if amount >= 1 and lessons.target_spec.kind != CLASSES:
            continue
        rows = _few(lessons, amount)
        problem = _problem(lessons, lessons.view, rows)
        fitted = fit(
            problem,
            rows,
            lambda: LinearHead(width, lessons.target_spec.width),
            lessons.settings[:1],
            lessons.course(),
            lessons.seed,
        )
        name = f"lowshot_{amount:g}_per_class" if amount >= 1 else f"lowshot_{amount:g}"
        probes[name] = TrainedProbe(fitted, lessons.settings[0])
    return probes


def clusters(view: View, num_clusters: int, seed: int) -> np.ndarray:
    """k-means of a side's video representations, centred and at unit norm: the cluster of each, int (videos,)."""
    videos = view.centred().numpy()
    with warnings.catch_warnings():
        # Where all videos look alike, as their geometry may, there are fewer clusters: no agreement, and no warning.
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        return KMeans(min(num_clusters, len(videos)), n_init=10, random_state=seed).fit_predict(videos)


def _few(lessons: ProbeTask, amount: float) -> Tensor:
    side, rows = lessons.view.side, lessons.refit_rows.tolist()
    order = sorted(rows, key=lambda row: uniform_hash(f"low-shot {lessons.seed}\0{side.video_ids[row]}"))
    if lessons.target_spec.kind != CLASSES:
        return torch.tensor(sorted(order[: max(round(amount * len(order)), 2)]))
    of_classes: dict[int, list[int]] = {}
    for row in order:
        of_classes.setdefault(int(side.targets[row]), []).append(row)
    kept = [m[: int(amount) if amount >= 1 else max(round(amount * len(m)), 1)] for m in of_classes.values()]
    return torch.tensor(sorted(row for members in kept for row in members))


def _problem(lessons: ProbeTask, inputs: Inputs, rows: Tensor) -> Problem:
    if isinstance(inputs, View):
        mean, scale = inputs.standardisation(rows)
    else:  # a head that standardises for itself
        mean, scale = torch.zeros(1), torch.ones(1)
    return Problem(inputs, lessons.view.side.targets, lessons.target_spec, mean, scale)


def _select_and_fit(
    lessons: ProbeTask, make_head: Callable[[], nn.Module], course: TrainingSchedule, inputs: Inputs | None = None
) -> TrainedProbe:
    """Fit the whole grid on one part of the training split, compare on the other, fit the best on all of it."""
    inputs, settings = inputs or lessons.view, lessons.settings
    best = settings[0]
    if len(settings) > 1 and len(lessons.selection_rows):
        rows = lessons.fit_rows
        grid = fit(_problem(lessons, inputs, rows), rows, make_head, settings, course, lessons.seed)
        scores = grid.scores(inputs, lessons.selection_rows)
        wanted = lessons.view.side.targets[lessons.selection_rows]
        worth = [_selection_score(of, wanted, lessons.target_spec) for of in scores]
        best = settings[max(range(len(settings)), key=worth.__getitem__)]
    rows = lessons.refit_rows
    fitted = fit(_problem(lessons, inputs, rows), rows, make_head, [best], course, lessons.seed)
    return TrainedProbe(fitted, best)


def _selection_score(scores: Tensor, targets: Tensor, target_spec: Targets) -> tuple[float, float]:
    """The probe's own metric, then the likelihood: few videos cannot tell all settings apart by the first."""
    [measured] = score_metrics("choice", scores, targets, target_spec)
    if target_spec.kind == CLASSES:
        likelihood = -F.nll_loss(scores.clamp(min=1e-12).log(), targets)
    elif target_spec.kind == MULTILABEL:
        likelihood = -F.binary_cross_entropy(scores, targets)
    else:
        likelihood = -F.mse_loss(scores, targets)
    value = measured.value()
    return (value if measured.more_is_better else -value), float(likelihood)
