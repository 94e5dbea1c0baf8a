"""The schedule of the learning rate, the same for the pretraining and the probes."""

from __future__ import annotations

import math

import torch


def schedule_of(
    optimizer: torch.optim.Optimizer, num_steps: int, warmup_share: float = 0.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a fraction of the steps, then a cosine to 0; to be stepped after every batch."""
    num_warmup = math.ceil(warmup_share * num_steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_then_cosine(step, num_warmup, num_steps))


def warmup_then_cosine(step: int, num_warmup: int, num_steps: int) -> float:
    """The learning rate at a step as a fraction of its peak: linear up to 1, then a cosine to 0."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
