"""What workers of one run exchange: features as negatives, sums, mean gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class _Counts:
    """How many rows of each kind every worker has: they may differ by what is masked, and by a video."""

    def __init__(self, rows_of_workers: list[list[int]]) -> None:
        self._rows = rows_of_workers

    @classmethod
    def of(cls, local: list[int], module: nn.Module) -> _Counts:
        if _world_size() == 1:
            return cls([local])
        device = next(module.parameters()).device
        mine = torch.tensor(local, device=device)
        everyone = [torch.empty_like(mine) for _ in range(_world_size())]
        dist.all_gather(everyone, mine)
        return cls(torch.stack(everyone).tolist())

    def of_workers(self, kind: int) -> list[int]:
        return [rows[kind] for rows in self._rows]

    def total(self, kind: int) -> int:
        return sum(self.of_workers(kind))

    def before(self, kind: int) -> int:
        """Rows of the workers before this one: where its own begin."""
        return sum(self.of_workers(kind)[: _rank()])


class _AllGather(torch.autograd.Function):
    """Concatenate a tensor of every worker; the gradient goes back to where each part came from."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        # Workers exchange tensors of one shape: short ones are filled up.
        padded = F.pad(local, (0, 0, 0, max(lengths) - len(local)))
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.lengths)[_rank()], None


def _gathered(local: Tensor, lengths: list[int]) -> Tensor:
    return _AllGather.apply(local, lengths) if len(lengths) > 1 else local


def _summed_over_workers(local: Tensor) -> Tensor:
    if _world_size() > 1:
        local = local.clone()
        dist.all_reduce(local)
    return local


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def average_over_workers(parameters: Sequence[nn.Parameter]) -> None:
    """Mean gradient over the workers: the objective's scaling makes it that of the global batch."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
