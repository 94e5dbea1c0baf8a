"""Training batches, a worker's part of them, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scale_ray.config import Sets


class Videos(NamedTuple):
    """Which videos a batch holds; their ids are looked up when somebody asks."""

    rows_B: Tensor
    names: Sequence[str]

    def ids(self) -> list[str]:
        return [self.names[row] for row in self.rows_B.tolist()]


@dataclass(frozen=True)
class Batch:
    """A worker's part of a global batch, on its device: the first sets of all its videos, then the second.

    `features_SVD` float32, `positions_SV7` float32 and normalised, `masked_SV` bool; S = 2B.
    """

    features_SVD: Tensor
    positions_SV7: Tensor
    masked_SV: Tensor
    videos: Videos

    def parts(self, count: int) -> list[Batch]:
        """So many parts with about as many videos each, both sets of a video in the same one."""
        if count == 1:
            return [self]
        halves = torch.arange(len(self.masked_SV), device=self.masked_SV.device).view(2, -1)
        rows = [torch.cat(both) for both in zip(*(half.tensor_split(count) for half in halves), strict=True)]
        videos = self.videos.rows_B.tensor_split(count)
        return [
            Batch(
                self.features_SVD[some],
                self.positions_SV7[some],
                self.masked_SV[some],
                Videos(of, self.videos.names),
            )
            for some, of in zip(rows, videos, strict=True)
        ]


class WorkerSlice(NamedTuple):
    """This worker's part of every global batch of `batch` videos; parts differ by a video at most."""

    batch: int
    rank: int
    workers: int

    @property
    def begin(self) -> int:
        return self.rank * self.batch // self.workers

    @property
    def size(self) -> int:
        return (self.rank + 1) * self.batch // self.workers - self.begin


class Source(Protocol):
    """Where a trainer's batches come from."""

    num_videos: int
    num_clips: int
    feature_width: int
    ingest_mode: str

    def batches(self, share: WorkerSlice, sets: Sets, *, seed: int, epoch: int, first_step: int) -> Iterator[Batch]:
        """This worker's batches of an epoch, from a step on: `num_videos // batch` in a whole epoch."""
        ...
