"""Training batches, the slice of them that each worker trains on, and the interface of their sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scale_ray.config import Sets


class Videos(NamedTuple):
    """The videos of a batch, as rows of `all_ids`; ids are looked up only when they are needed."""

    rows_B: Tensor
    all_ids: Sequence[str]

    def ids(self) -> list[str]:
        """The ids of the videos, in the order of the batch."""
        return [self.all_ids[row] for row in self.rows_B.tolist()]


@dataclass(frozen=True)
class Batch:
    """One worker's slice of a global batch, on its device: the first sets of all its videos, then the second sets.

    `features_SVD` float32, `positions_SV7` float32 and normalised, `masked_SV` bool; S = 2B. `owners_B2` int64 holds a
    hash of the group and one of the id of each video, if the source knows groups.
    """

    features_SVD: Tensor
    positions_SV7: Tensor
    masked_SV: Tensor
    videos: Videos
    owners_B2: Tensor | None = None

    def parts(self, count: int) -> list[Batch]:
        """Split into `count` batches of about equal size; both sets of a video stay together."""
        if count == 1:
            return [self]
        halves = torch.arange(len(self.masked_SV), device=self.masked_SV.device).view(2, -1)
        sets_of_parts = map(torch.cat, zip(*(half.tensor_split(count) for half in halves), strict=True))
        rows_of_parts = self.videos.rows_B.tensor_split(count)
        owners_of_parts = [None] * count if self.owners_B2 is None else self.owners_B2.tensor_split(count)
        return [
            Batch(
                self.features_SVD[sets],
                self.positions_SV7[sets],
                self.masked_SV[sets],
                Videos(rows_B, self.videos.all_ids),
                owners_B2,
            )
            for sets, rows_B, owners_B2 in zip(sets_of_parts, rows_of_parts, owners_of_parts, strict=True)
        ]


class WorkerSlice(NamedTuple):
    """The slice that worker `rank` of `num_workers` takes of every global batch of `batch_size` videos.

    The slices are contiguous; their sizes differ by at most one video.
    """

    batch_size: int
    rank: int
    num_workers: int

    @property
    def begin(self) -> int:
        """The first video of the slice, counted within the global batch."""
        return self.rank * self.batch_size // self.num_workers

    @property
    def size(self) -> int:
        """Number of videos in the slice."""
        return (self.rank + 1) * self.batch_size // self.num_workers - self.begin


class Source(Protocol):
    """A source of training batches: what a trainer requires of it."""

    num_videos: int
    num_clips: int
    feature_width: int
    ingest_mode: str

    def batches(
        self, worker_slice: WorkerSlice, sets: Sets, *, seed: int, epoch: int, first_step: int
    ) -> Iterator[Batch]:
        """This worker's batches of one epoch, from `first_step` on; an epoch has `num_videos // batch_size` steps."""
        ...
