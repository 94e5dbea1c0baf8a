"""Positions of clips as the aggregator sees them (section 3 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor


def normalised_positions(positions: Tensor) -> Tensor:
    """Positions (videos, clips, 7) as model input: y, x and t shifted and scaled to [0, 1] per video or set.

    Per video and axis, the smallest start of its clips becomes 0 and the largest end 1. An axis on which all
    starts and ends are equal becomes 0. `flip` stays 1 or -1.
    """
    flip, starts, ends = (
        positions[..., :1],
        positions[..., [1, 2, 5]],
        positions[..., [3, 4, 6]],
    )
    minimum = starts.amin(1, keepdim=True)
    extent = ends.amax(1, keepdim=True) - minimum
    extent = torch.where(extent > 0, extent, torch.ones_like(extent))
    starts, ends = (starts - minimum) / extent, (ends - minimum) / extent
    return torch.cat([flip, starts[..., :2], ends[..., :2], starts[..., 2:], ends[..., 2:]], -1)
