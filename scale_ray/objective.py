"""The two losses: masked clip modelling and set contrast, with the negatives of the global batch.

Section 4 of the method. Dimension letters: B videos, S = 2B sets, V clips in a set, D feature width,
E aggregator width, M masked clips; of this worker, unless the name says `all`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.config import ObjectiveOptions


@dataclass(frozen=True)
class Losses:
    """`loss` carries the gradients, scaled so that their mean over the workers is that of the global batch.

    The others are detached and describe the global batch: both losses, and the top-1 accuracy of either
    contrast, a fraction in [0, 1].
    """

    loss: Tensor
    set_loss: Tensor
    clip_loss: Tensor
    set_top1: Tensor
    clip_top1: Tensor


class Objective(nn.Module):
    """The heads, and the losses that they are for."""

    def __init__(self, feature_width: int, width: int, options: ObjectiveOptions) -> None:
        super().__init__()
        self.options = options
        self.set_head = _head(width, options.prediction_hidden, options.contrast_width)
        self.clip_head = _head(width, options.prediction_hidden, options.contrast_width)
        self.target_head = _head(feature_width, options.target_hidden, options.target_hidden, options.contrast_width)

    def forward(
        self, set_tokens_SE: Tensor, clip_tokens_SVE: Tensor, features_SVD: Tensor, masked_SV: Tensor
    ) -> Losses:
        """Losses of the sets of one batch: the first sets of all videos, then the second ones.

        Only the masked clips go through the prediction head; every clip's unmasked feature is a
        candidate. A batch where nothing is masked has a masked clip loss of zero.
        """
        options = self.options
        set_sum, set_hits = self._set_contrast(set_tokens_SE)
        clip_sum, clip_hits = self._masked_clips(clip_tokens_SVE, features_SVD, masked_SV)
        workers = _world_size()
        num_sets = set_tokens_SE.shape[0] * workers
        num_masked = _summed_over_workers(masked_SV.sum()).clamp(min=1)
        set_loss = set_sum / num_sets
        clip_loss = clip_sum / num_masked
        total = options.set_weight + options.clip_weight
        loss = (options.set_weight * set_loss + options.clip_weight * clip_loss) / total
        logged = _summed_over_workers(
            torch.stack([set_loss.detach(), clip_loss.detach(), set_hits / num_sets, clip_hits / num_masked])
        )
        return Losses(loss * workers, *logged)

    def _set_contrast(self, set_tokens_SE: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and number of hits of this worker's sets against all workers' sets."""
        first_BC, second_BC = F.normalize(self.set_head(set_tokens_SE), dim=-1).chunk(2)
        right = torch.arange(len(first_BC), device=first_BC.device) + _rank() * len(first_BC)
        loss, hits = first_BC.new_zeros(()), first_BC.new_zeros(())
        for anchors, candidates in ((first_BC, second_BC), (second_BC, first_BC)):
            logits = anchors @ _gathered(candidates).T / self.options.set_temperature
            loss = loss + F.cross_entropy(logits, right, reduction="sum")
            hits = hits + (logits.argmax(1) == right).sum()
        return loss, hits

    def _masked_clips(self, clip_tokens_SVE: Tensor, features_SVD: Tensor, masked_SV: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and number of hits of this worker's masked clips against all clips."""
        predicted_MC = F.normalize(self.clip_head(clip_tokens_SVE[masked_SV]), dim=-1)
        targets_TC = F.normalize(self.target_head(features_SVD.flatten(0, 1)), dim=-1)
        logits = predicted_MC @ _gathered(targets_TC).T / self.options.clip_temperature
        right = masked_SV.flatten().nonzero().squeeze(1) + _rank() * len(targets_TC)
        return F.cross_entropy(logits, right, reduction="sum"), (logits.argmax(1) == right).sum()


def _head(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow, bias=False), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class _AllGather(torch.autograd.Function):
    """Concatenate a tensor of every worker; the gradient goes back to where each part came from."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(_world_size())]
        dist.all_gather(parts, local.contiguous())
        ctx.length = len(local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        start = _rank() * ctx.length
        return gradient[start : start + ctx.length]


def _gathered(local: Tensor) -> Tensor:
    return _AllGather.apply(local) if _world_size() > 1 else local


def _summed_over_workers(local: Tensor) -> Tensor:
    if _world_size() > 1:
        local = local.clone()
        dist.all_reduce(local)
    return local


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
