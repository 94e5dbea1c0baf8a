"""Metrics of a probe's scores, each a function of rows of the test videos.

So the bootstrap can compute the same metric for any draw of the test videos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from scale_ray.probes.targets import CLASSES, MULTILABEL, Targets


@dataclass(frozen=True)
class Metric:
    """A metric of the test videos.

    `compute` returns its value for rows, int64, that may repeat. `more_is_better` is False for errors.
    `repeats_agree` is True if a video that is drawn twice agrees with itself, which raises the value.
    """

    name: str
    compute: Callable[[np.ndarray], float]
    num_videos: int
    more_is_better: bool = True
    repeats_agree: bool = False

    def value(self) -> float:
        """The metric of all test videos."""
        return self.compute(np.arange(self.num_videos))


def mean_metric(name: str, values: np.ndarray, *, more_is_better: bool = True) -> Metric:
    """The mean of one number per video, `values` (videos,)."""
    values = np.asarray(values, np.float64)
    return Metric(name, lambda rows: float(values[rows].mean()), len(values), more_is_better)


def score_metrics(prefix: str, scores: Tensor, targets: Tensor, target_spec: Targets) -> list[Metric]:
    """The metric of scores (videos, K): top-1 of classes, mAP of several labels, mean squared error of numbers.

    Top-1 is a fraction in [0, 1]. mAP is scikit-learn's average precision, averaged over the labels that occur, in
    [0, 1]. The mean squared error is in squared units of the target.
    """
    if target_spec.kind == CLASSES:
        return [mean_metric(f"{prefix}_top1", (scores.argmax(1) == targets).numpy())]
    if target_spec.kind == MULTILABEL:
        compute = _mean_average_precision(scores.numpy(), targets.numpy() > 0)
        return [Metric(f"{prefix}_map", compute, len(scores), repeats_agree=True)]
    errors = (scores - targets).square()[:, 0]
    return [mean_metric(f"{prefix}_mse", errors.numpy(), more_is_better=False)]


def _mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], float]:
    """scikit-learn's average precision, averaged over the labels that occur, as a function of rows that may repeat.

    Scores are sorted once, since a draw of the rows only changes how often each video counts. scikit-learn sorts again
    for every draw: almost an hour for a thousand draws of a few thousand videos with a hundred labels.
    """
    num_videos = len(scores)
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, hits = np.take_along_axis(scores, order, 0), np.take_along_axis(targets, order, 0)
    # Videos of equal score share one threshold, whose precision is that at the last of them.
    ends = np.ones(scores.shape, bool)
    ends[:-1] = ranked[1:] != ranked[:-1]
    last = np.where(ends, np.arange(num_videos)[:, None], num_videos - 1)
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]

    def compute(rows: np.ndarray) -> float:
        counts = np.bincount(rows, minlength=num_videos)[order]
        positives = counts * hits
        occurs = positives.any(0)
        if not occurs.any():
            return 0.0
        precision = positives.cumsum(0) / np.maximum(counts.cumsum(0), 1)
        at_threshold = np.take_along_axis(precision, last, 0)
        return float(((positives * at_threshold).sum(0)[occurs] / positives.sum(0)[occurs]).mean())

    return compute


def cluster_metrics(clusters: np.ndarray, targets: Tensor) -> list[Metric]:
    """Agreement of clusters with classes, in [0, 1]: NMI, and the V-measure of homogeneity and completeness.

    NMI is normalised by the geometric mean (Strehl and Ghosh), since with the arithmetic mean it equals the V-measure.
    """
    from sklearn import metrics

    classes = targets.numpy()

    def nmi(rows: np.ndarray) -> float:
        value = metrics.normalized_mutual_info_score(classes[rows], clusters[rows], average_method="geometric")
        return float(value)

    def v_measure(rows: np.ndarray) -> float:
        return float(metrics.v_measure_score(classes[rows], clusters[rows]))

    return [
        Metric("clustering_nmi", nmi, len(classes), repeats_agree=True),
        Metric("clustering_v_measure", v_measure, len(classes), repeats_agree=True),
    ]
