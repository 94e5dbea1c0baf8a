"""Confidence intervals by a bootstrap over test groups and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scale_ray.probes.metrics import Metric


def resamples_of(groups: Sequence[str], count: int, seed: int) -> Iterator[np.ndarray]:
    """Draw the test videos with replacement `count` times, whole groups at a time: int64 rows of each draw.

    `groups` holds the group of every test video.
    """
    rows_by_group: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_by_group.setdefault(group, []).append(row)
    members = [np.array(rows) for rows in rows_by_group.values()]
    generator = np.random.default_rng(seed)
    for _ in range(count):
        drawn = generator.integers(len(members), size=len(members))
        yield np.concatenate([members[group] for group in drawn])


@dataclass(frozen=True)
class Estimate:
    """The mean over the seeds, its 95 % interval from `low` to `high`, and the value of `each` seed.

    With one seed the interval covers the choice of the test videos only, not what another seed would change.
    """

    value: float
    low: float
    high: float
    each: list[float]


@dataclass(frozen=True)
class BootstrapSamples:
    """The values of S seeds: `each` (S,) on all test videos, `resampled` (R, S) on each of R draws of them."""

    each: np.ndarray
    resampled: np.ndarray

    @classmethod
    def from_metrics(cls, metrics: Sequence[Metric], draws: Sequence[np.ndarray]) -> BootstrapSamples:
        """Compute a metric, given once per seed, on all test videos and on the rows of each draw.

        If videos drawn twice raise the value of every draw (`repeats_agree`), the draws are shifted so that their mean
        is the value on all test videos.
        """
        each = np.array([metric.value() for metric in metrics])
        resampled = np.array([[metric.compute(rows) for metric in metrics] for rows in draws])
        if metrics[0].repeats_agree:
            resampled += each - resampled.mean(0)
        return cls(each, resampled)

    def __sub__(self, other: BootstrapSamples) -> BootstrapSamples:
        """The paired difference; both must be of the same seeds and draws."""
        return BootstrapSamples(self.each - other.each, self.resampled - other.resampled)

    def estimate(self, seed: int) -> Estimate:
        """The mean over the seeds, and the 2.5th to 97.5th percentile of the bootstrap over test videos and seeds."""
        seeds = np.random.default_rng(seed).integers(len(self.each), size=self.resampled.shape)
        drawn = np.take_along_axis(self.resampled, seeds, 1).mean(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Estimate(float(self.each.mean()), float(low), float(high), self.each.tolist())
