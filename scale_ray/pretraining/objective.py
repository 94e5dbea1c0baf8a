"""The two losses: masked clip modelling and set contrast, with the negatives of the global batch.

Section 4 of the method. Dimension letters: B videos, S = 2B sets, V clips in a set, D feature width,
E aggregator width, C contrast width, M masked clips, T targets; of this worker, unless the name says `all`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.config import ObjectiveOptions
from scale_ray.pretraining.collectives import _Counts, _gathered, _summed_over_workers, _world_size


@dataclass(frozen=True)
class Losses:
    """`loss` carries the gradients, scaled so that their mean over the workers is that of the global batch.

    The others are detached and describe the global batch: the weighted loss, both losses, and the top-1
    accuracy of either contrast, a fraction in [0, 1].
    """

    loss: Tensor
    mean_loss: Tensor
    set_loss: Tensor
    clip_loss: Tensor
    set_top1: Tensor
    clip_top1: Tensor


@dataclass(frozen=True)
class Projections:
    """What the losses compare: all that a batch must leave behind until the whole batch has been seen.

    `first_BC`, `second_BC`: the projected set tokens of the first and the second sets. `predicted`: a row a
    masked clip; `targets`: the rows it is compared with; `right_M`: which of them is the right one.
    """

    first_BC: Tensor
    second_BC: Tensor
    predicted: Tensor
    targets: Tensor
    right_M: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return (self.first_BC, self.second_BC, self.predicted, self.targets)

    @classmethod
    def joined(cls, parts: Sequence[Projections]) -> Projections:
        """Those of a batch from those of its parts."""
        starts = itertools.accumulate((len(part.targets) for part in parts), initial=0)
        columns = zip(*(part.differentiable for part in parts), strict=True)
        first, second, predicted, targets = (torch.cat(column) for column in columns)
        right = torch.cat([part.right_M + start for part, start in zip(parts, starts, strict=False)])
        return cls(first, second, predicted, targets, right)


class Objective(nn.Module):
    """The heads, and the losses that they are for.

    A loss of weight zero is not computed. The masked clip loss is a contrast with all clips of the batch, or
    with the masked ones alone; or a regression of the backbone's feature: its cosine distance, or the smooth L1
    distance of the feature brought to mean 0 and variance 1. What is regressed has no head of its own, since a
    learned target would be the same for all clips before long.
    """

    def __init__(self, feature_width: int, width: int, options: ObjectiveOptions) -> None:
        super().__init__()
        self.options = options
        contrast = options.clip_objective == "contrast"
        if options.set_weight:
            self.set_head = _head(width, options.prediction_hidden, options.contrast_width)
        if options.clip_weight:
            compared = options.contrast_width if contrast else feature_width
            self.clip_head = _head(width, options.prediction_hidden, compared)
        if options.clip_weight and contrast:
            hidden = options.target_hidden
            self.target_head = _head(feature_width, hidden, hidden, options.contrast_width)

    def forward(
        self, set_tokens_SE: Tensor, clip_tokens_SVE: Tensor, features_SVD: Tensor, masked_SV: Tensor
    ) -> Losses:
        """Losses of the sets of one batch: the first sets of all videos, then the second ones."""
        return self.losses(self.project(set_tokens_SE, clip_tokens_SVE, features_SVD, masked_SV))

    def project(
        self, set_tokens_SE: Tensor, clip_tokens_SVE: Tensor, features_SVD: Tensor, masked_SV: Tensor
    ) -> Projections:
        """What the losses compare, float32 or more. Only masked clips go through the prediction head."""
        masked = masked_SV.flatten().nonzero().squeeze(1)
        tokens_TE, features_TD = clip_tokens_SVE.flatten(0, 1), features_SVD.flatten(0, 1)
        nothing = set_tokens_SE.new_zeros(0, self.options.contrast_width)
        if self.options.set_weight:
            first, second = _unit(self.set_head(set_tokens_SE)).chunk(2)
        else:
            first = second = nothing
        if not self.options.clip_weight:
            return Projections(first, second, nothing, nothing, masked[:0])
        predicted = self.clip_head(tokens_TE[masked])
        one_by_one = torch.arange(len(masked), device=masked.device)
        if self.options.clip_objective == "smooth_l1":
            return Projections(
                first, second, _full(predicted), F.layer_norm(features_TD[masked], features_TD.shape[1:]), one_by_one
            )
        if self.options.clip_objective == "cosine":
            return Projections(first, second, _unit(predicted), _unit(features_TD[masked]), one_by_one)
        if self.options.candidates == "masked":
            features_TD, masked = features_TD[masked], one_by_one
        return Projections(first, second, _unit(predicted), _unit(self.target_head(features_TD)), masked)

    def compile_heads(self) -> None:
        """Compile what has fixed widths; how many clips are masked differs from step to step."""
        for head in self.children():
            head.compile(dynamic=True)

    def losses(self, projections: Projections) -> Losses:
        """The losses of the global batch from what every worker projected of its videos.

        A batch where nothing is masked has a masked clip loss of zero.
        """
        options = self.options
        counts = _Counts.of([len(projections.first_BC), len(projections.targets), len(projections.predicted)], self)
        set_sum, set_hits = self._set_contrast(projections, counts)
        clip_sum, clip_hits = self._masked_clips(projections, counts)
        num_sets, num_masked = max(2 * counts.total(0), 1), max(counts.total(2), 1)
        total = options.set_weight + options.clip_weight
        set_loss, clip_loss = set_sum / num_sets, clip_sum / num_masked
        loss = (options.set_weight * set_loss + options.clip_weight * clip_loss) / total
        logged = _summed_over_workers(
            torch.stack([loss, set_loss, clip_loss, set_hits / num_sets, clip_hits / num_masked]).detach()
        )
        return Losses(loss * _world_size(), *logged)

    def _set_contrast(self, projections: Projections, counts: _Counts) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and number of hits of this worker's sets against all workers' sets."""
        first_BC, second_BC = projections.first_BC, projections.second_BC
        loss, hits = first_BC.new_zeros(()), first_BC.new_zeros(())
        if not counts.total(0):
            return loss, hits
        right = torch.arange(len(first_BC), device=first_BC.device) + counts.before(0)
        for anchors, candidates in ((first_BC, second_BC), (second_BC, first_BC)):
            logits = anchors @ _gathered(candidates, counts.of_workers(0)).T / self.options.set_temperature
            loss = loss + F.cross_entropy(logits, right, reduction="sum")
            hits = hits + (logits.argmax(1) == right).sum()
        return loss, hits

    def _masked_clips(self, projections: Projections, counts: _Counts) -> tuple[Tensor, Tensor]:
        """Summed loss of this worker's masked clips, and number of hits; a regression has no hits."""
        predicted, targets = projections.predicted, projections.targets
        none = predicted.new_zeros(())
        if self.options.clip_objective == "smooth_l1":
            return F.smooth_l1_loss(predicted, targets, reduction="none").mean(1).sum(), none
        if self.options.clip_objective == "cosine":
            return (1 - (predicted * targets).sum(1)).sum(), none
        if not counts.total(1):
            return (predicted.sum() + targets.sum()) * 0.0, none
        candidates = _gathered(targets, counts.of_workers(1))
        logits = predicted @ candidates.T / self.options.clip_temperature
        right = projections.right_M + counts.before(1)
        return F.cross_entropy(logits, right, reduction="sum"), (logits.argmax(1) == right).sum()


def _head(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow, bias=False), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _full(values: Tensor) -> Tensor:
    """In float32 at least: losses are not computed in half precision."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _unit(values: Tensor) -> Tensor:
    return F.normalize(_full(values), dim=-1)
