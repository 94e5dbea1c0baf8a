"""Communication between the workers of one run: negatives, sums and mean gradients.

Without an initialised `torch.distributed` process group there is one worker, and nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


def world_size() -> int:
    """Number of workers of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this worker, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


class WorkerCounts:
    """Row counts of every worker, for several kinds of rows.

    Workers differ in the number of masked clips, and by one video if the batch does not divide evenly.
    """

    def __init__(self, rows_of_workers: list[list[int]]) -> None:
        self._rows = rows_of_workers

    @classmethod
    def from_local(cls, local: list[int], module: nn.Module) -> WorkerCounts:
        """Exchange this worker's counts, one per kind, with all workers, on the device of `module`."""
        if world_size() == 1:
            return cls([local])
        device = next(module.parameters()).device
        own = torch.tensor(local, device=device)
        counts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(counts, own)
        return cls(torch.stack(counts).tolist())

    def per_worker(self, kind: int) -> list[int]:
        """Number of rows of a kind, per worker."""
        return [rows[kind] for rows in self._rows]

    def total(self, kind: int) -> int:
        """Number of rows of a kind, over all workers."""
        return sum(self.per_worker(kind))

    def offset(self, kind: int) -> int:
        """Index of this worker's first row among the rows of all workers."""
        return sum(self.per_worker(kind)[: rank()])


class _AllGather(torch.autograd.Function):
    """Concatenate a tensor over the workers; the gradient of each part goes back to its worker."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        # all_gather requires equal shapes: shorter tensors are padded.
        padded = F.pad(local, (0, 0, 0, max(lengths) - len(local)))
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.lengths)[rank()], None


def gathered(local: Tensor, lengths: list[int]) -> Tensor:
    """The rows (length, width) of all workers, concatenated by rank; `lengths` holds one length per worker."""
    return _AllGather.apply(local, lengths) if len(lengths) > 1 else local


def summed_over_workers(local: Tensor) -> Tensor:
    """The sum of a tensor over the workers, without a gradient."""
    if world_size() > 1:
        local = local.clone()
        dist.all_reduce(local)
    return local


def average_over_workers(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients by their mean over the workers.

    The objective scales its loss so that this mean is the gradient of the global batch.
    """
    if world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
