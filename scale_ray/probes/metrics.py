"""What a probe's scores are worth: each metric as a function of the test videos that count.

So that intervals can ask for the same metric of other draws of the test videos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn import metrics
from torch import Tensor

from scale_ray.probes.targets import CLASSES, MULTILABEL, Targets


@dataclass(frozen=True)
class Metric:
    """A metric: of all test videos, or of those of `rows`, int64 with any repetitions.

    `name` says what it is; `more_is_better` whether higher values are; `repeats_agree` whether a video that is
    given twice moves the value by agreeing with itself.
    """

    name: str
    of: Callable[[np.ndarray], float]
    num_videos: int
    more_is_better: bool = True
    repeats_agree: bool = False

    def value(self) -> float:
        return self.of(np.arange(self.num_videos))


def mean_metric(name: str, values: np.ndarray, *, more_is_better: bool = True) -> Metric:
    """The mean of a number a video."""
    values = np.asarray(values, np.float64)
    return Metric(name, lambda rows: float(values[rows].mean()), len(values), more_is_better)


def score_metrics(prefix: str, scores: Tensor, targets: Tensor, target_spec: Targets) -> list[Metric]:
    """What scores (videos, K) are worth: top-1 of classes, mAP of several labels, MSE of numbers.

    Top-1 is a share in [0, 1]. mAP is the mean over the labels that occur of scikit-learn's average
    precision, in [0, 1]. The mean squared error is in units of the target, squared.
    """
    if target_spec.kind == CLASSES:
        return [mean_metric(f"{prefix}_top1", (scores.argmax(1) == targets).numpy())]
    if target_spec.kind == MULTILABEL:
        of = _mean_average_precision(scores.numpy(), targets.numpy() > 0)
        return [Metric(f"{prefix}_map", of, len(scores), repeats_agree=True)]
    errors = (scores - targets).square()[:, 0]
    return [mean_metric(f"{prefix}_mse", errors.numpy(), more_is_better=False)]


def _mean_average_precision(scores: np.ndarray, wanted: np.ndarray) -> Callable[[np.ndarray], float]:
    """scikit-learn's average precision, mean over the labels that occur, of any rows with repetitions.

    scikit-learn sorts every label again for each draw of the rows, which is most of an hour for a thousand draws of
    some thousand videos and hundred labels. A draw only says how often each video counts.
    """
    num_videos = len(scores)
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, hits = np.take_along_axis(scores, order, 0), np.take_along_axis(wanted, order, 0)
    # Videos of equal score are at one threshold: what counts is the last of them.
    ends = np.ones(scores.shape, bool)
    ends[:-1] = ranked[1:] != ranked[:-1]
    places = np.where(ends, np.arange(num_videos)[:, None], num_videos - 1)
    last = np.minimum.accumulate(places[::-1], axis=0)[::-1]

    def of(rows: np.ndarray) -> float:
        counts = np.bincount(rows, minlength=num_videos)[order]
        right = counts * hits
        occurs = right.any(0)
        if not occurs.any():
            return 0.0
        precision = right.cumsum(0) / np.maximum(counts.cumsum(0), 1)
        at_threshold = np.take_along_axis(precision, last, 0)
        return float(((right * at_threshold).sum(0)[occurs] / right.sum(0)[occurs]).mean())

    return of


def cluster_metrics(clusters: np.ndarray, targets: Tensor) -> list[Metric]:
    """Agreement of clusters with classes, in [0, 1]: NMI, homogeneity, completeness and their V-measure.

    NMI with the arithmetic mean is the V-measure; told is the geometric one of Strehl and Ghosh.
    """
    classes = targets.numpy()

    def of(metric: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray], float]:
        return lambda rows: float(metric(classes[rows], clusters[rows]))

    def nmi(true: np.ndarray, found: np.ndarray) -> float:
        return metrics.normalized_mutual_info_score(true, found, average_method="geometric")

    return [
        Metric("clustering_nmi", of(nmi), len(classes), repeats_agree=True),
        Metric("clustering_v_measure", of(metrics.v_measure_score), len(classes), repeats_agree=True),
    ]
