"""What a probe's scores are worth: each measure as a function of the test videos that count.

So that intervals can ask for the same measure of other draws of the test videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn import metrics
from torch import Tensor

from scale_ray.targets import CLASSES, MULTILABEL, Targets


@dataclass(frozen=True)
class Measured:
    """A measure: of all test videos, or of those of `rows`, int64 with any repetitions.

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


def mean_of(name: str, values: np.ndarray, *, more_is_better: bool = True) -> Measured:
    """The mean of a number a video."""
    values = np.asarray(values, np.float64)
    return Measured(name, lambda rows: float(values[rows].mean()), len(values), more_is_better)


def measured_scores(prefix: str, scores: Tensor, targets: Tensor, described: Targets) -> list[Measured]:
    """What scores (videos, K) are worth: top-1 of classes, mAP of several labels, MSE of numbers.

    Top-1 is a share in [0, 1]. mAP is the mean over the labels that occur of scikit-learn's average
    precision, in [0, 1]. The mean squared error is in units of the target, squared.
    """
    if described.kind == CLASSES:
        return [mean_of(f"{prefix}_top1", (scores.argmax(1) == targets).numpy())]
    if described.kind == MULTILABEL:
        found, wanted = scores.numpy(), targets.numpy() > 0

        def mean_average_precision(rows: np.ndarray) -> float:
            some = wanted[rows]
            occurs = some.any(0)
            if not occurs.any():
                return 0.0
            return float(metrics.average_precision_score(some[:, occurs], found[rows][:, occurs]))

        return [Measured(f"{prefix}_map", mean_average_precision, len(found))]
    errors = (scores - targets).square()[:, 0]
    return [mean_of(f"{prefix}_mse", errors.numpy(), more_is_better=False)]


def measured_clusters(clusters: np.ndarray, targets: Tensor) -> list[Measured]:
    """Agreement of clusters with classes, in [0, 1]: NMI, homogeneity, completeness and their V-measure.

    NMI with the arithmetic mean is the V-measure; told is the geometric one of Strehl and Ghosh.
    """
    classes = targets.numpy()

    def of(measure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray], float]:
        return lambda rows: float(measure(classes[rows], clusters[rows]))

    def nmi(true: np.ndarray, found: np.ndarray) -> float:
        return metrics.normalized_mutual_info_score(true, found, average_method="geometric")

    return [
        Measured("clustering_nmi", of(nmi), len(classes), repeats_agree=True),
        Measured("clustering_v_measure", of(metrics.v_measure_score), len(classes), repeats_agree=True),
    ]


def resamples_of(groups: Sequence[str], count: int, seed: int) -> Iterator[np.ndarray]:
    """Draws of the test videos with replacement, whole groups at a time: rows of each draw, int64."""
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    of_groups: list[list[int]] = [[] for _ in names]
    for row, name in enumerate(groups):
        of_groups[names[name]].append(row)
    members = [np.array(rows) for rows in of_groups]
    generator = np.random.default_rng(seed)
    for _ in range(count):
        drawn = generator.integers(len(members), size=len(members))
        yield np.concatenate([members[place] for place in drawn])


@dataclass(frozen=True)
class Estimate:
    """The mean over the seeds, its 95 % interval, and the value of each seed."""

    value: float
    low: float
    high: float
    each: list[float]


@dataclass(frozen=True)
class Drawn:
    """A quantity as each seed has it: `each` (S,) of all test videos, `resampled` (R, S) of each draw of them."""

    each: np.ndarray
    resampled: np.ndarray

    @classmethod
    def of(cls, measured: Sequence[Measured], rows: Sequence[np.ndarray]) -> Drawn:
        """One measure of every seed, over the `rows` of each draw of the test videos.

        Where videos that are drawn twice put every draw too high, the draws are moved to have their mean at the value.
        """
        each = np.array([one.value() for one in measured])
        resampled = np.array([[one.of(some) for one in measured] for some in rows])
        if measured[0].repeats_agree:
            resampled += each - resampled.mean(0)
        return cls(each, resampled)

    def __sub__(self, other: Drawn) -> Drawn:
        """Paired: both of the same seeds and draws."""
        return Drawn(self.each - other.each, self.resampled - other.resampled)

    def estimate(self, seed: int) -> Estimate:
        """The mean, and the 2.5th to 97.5th percentile of the bootstrap over the test videos and the seeds."""
        seeds = np.random.default_rng(seed).integers(len(self.each), size=self.resampled.shape)
        drawn = np.take_along_axis(self.resampled, seeds, 1).mean(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Estimate(float(self.each.mean()), float(low), float(high), self.each.tolist())
