"""Intervals: a bootstrap over test groups and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scale_ray.probes.metrics import Metric


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
class BootstrapSamples:
    """A quantity as each seed has it: `each` (S,) of all test videos, `resampled` (R, S) of each draw of them."""

    each: np.ndarray
    resampled: np.ndarray

    @classmethod
    def of(cls, measured: Sequence[Metric], rows: Sequence[np.ndarray]) -> BootstrapSamples:
        """One metric of every seed, over the `rows` of each draw of the test videos.

        Where videos that are drawn twice put every draw too high, the draws are moved to have their mean at the value.
        """
        each = np.array([one.value() for one in measured])
        resampled = np.array([[one.of(some) for one in measured] for some in rows])
        if measured[0].repeats_agree:
            resampled += each - resampled.mean(0)
        return cls(each, resampled)

    def __sub__(self, other: BootstrapSamples) -> BootstrapSamples:
        """Paired: both of the same seeds and draws."""
        return BootstrapSamples(self.each - other.each, self.resampled - other.resampled)

    def estimate(self, seed: int) -> Estimate:
        """The mean, and the 2.5th to 97.5th percentile of the bootstrap over the test videos and the seeds."""
        seeds = np.random.default_rng(seed).integers(len(self.each), size=self.resampled.shape)
        drawn = np.take_along_axis(self.resampled, seeds, 1).mean(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Estimate(float(self.each.mean()), float(low), float(high), self.each.tolist())
