"""The optimiser, and the moving average of the weights."""

from __future__ import annotations

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


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that holds the moving average of its weights.

    The first update copies the weights; each later one sets the average to `decay` times itself plus
    `1 - decay` times the current weights.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
