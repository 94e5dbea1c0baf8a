"""The optimiser, the schedule of the learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scale_ray.config import Training


def optimizer_of(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: biases, norms and the two tokens are vectors."""
    parameters = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
    )


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


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that holds the moving average of its weights.

    The first update copies the weights; each later one sets the average to `decay` times itself plus
    `1 - decay` times the current weights.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
