"""The two losses: masked clip modelling and set contrast, with negatives from the global batch.

Section 4 of the paper. Dimension letters: B videos, S = 2B sets, V clips in a set, D feature width, E aggregator
width, C contrast width, M masked clips, T all clips of the sets. B, S, M and T count the rows of this worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.config import ObjectiveOptions
from scale_ray.pretraining.collectives import WorkerCounts, gathered, summed_over_workers, world_size

# The kinds of rows that workers count for each other.
_VIDEOS, _TARGETS, _MASKED = range(3)


@dataclass(frozen=True)
class Losses:
    """The losses of a batch, as scalars.

    `loss` is for backpropagation: its gradients, averaged over the workers, are those of the global batch. The
    other fields are detached and describe the global batch: the weighted mean of the two losses, each loss, and
    the top-1 accuracy of each contrast, a fraction in [0, 1].
    """

    loss: Tensor
    mean_loss: Tensor
    set_loss: Tensor
    clip_loss: Tensor
    set_top1: Tensor
    clip_top1: Tensor


@dataclass(frozen=True)
class Projections:
    """The inputs of the losses: all that must be kept of one part of a batch until every part has been projected.

    `first_BC`, `second_BC`: the projected set tokens of the first and of the second sets. `predicted`: one row
    per masked clip. `targets`: the rows that they are compared with. `target_rows_M`: for each masked clip, the
    row of its own target, int64. The `owners` of videos, masked clips and targets, int64 (rows, 2), are a hash of
    the group and one of the id of their video; empty if videos of one group are each other's negatives.
    """

    first_BC: Tensor
    second_BC: Tensor
    predicted: Tensor
    targets: Tensor
    target_rows_M: Tensor
    owners_B2: Tensor
    predicted_owners: Tensor
    target_owners: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        """The fields through which gradients flow."""
        return (self.first_BC, self.second_BC, self.predicted, self.targets)

    @classmethod
    def joined(cls, parts: Sequence[Projections]) -> Projections:
        """The projections of a batch, from those of its parts."""
        starts = itertools.accumulate((len(part.targets) for part in parts), initial=0)
        columns = zip(*(part.differentiable for part in parts), strict=True)
        first, second, predicted, targets = (torch.cat(column) for column in columns)
        target_rows = torch.cat([part.target_rows_M + start for part, start in zip(parts, starts, strict=False)])
        owners = zip(*((p.owners_B2, p.predicted_owners, p.target_owners) for p in parts), strict=True)
        return cls(first, second, predicted, targets, target_rows, *(torch.cat(column) for column in owners))


class Objective(nn.Module):
    """The projection heads and the two losses.

    A loss of weight 0 is not computed and has no heads. The masked clip loss is a contrast against all clips of
    the batch or against the masked ones only, or a regression of the backbone's feature: its cosine distance, or
    the smooth L1 distance to the feature normalised to mean 0 and variance 1. The regression target has no head,
    because a learned target would collapse.
    """

    def __init__(self, feature_width: int, width: int, options: ObjectiveOptions) -> None:
        super().__init__()
        self.options = options
        contrast = options.clip_objective == "contrast"
        if options.set_weight:
            self.set_head = _head(width, options.prediction_hidden, options.contrast_width)
        if options.clip_weight:
            predicted_width = options.contrast_width if contrast else feature_width
            self.clip_head = _head(width, options.prediction_hidden, predicted_width)
        if options.clip_weight and contrast:
            hidden = options.target_hidden
            self.target_head = _head(feature_width, hidden, hidden, options.contrast_width)

    def forward(
        self,
        set_tokens_SE: Tensor,
        clip_tokens_SVE: Tensor,
        features_SVD: Tensor,
        masked_SV: Tensor,
        owners_B2: Tensor | None = None,
    ) -> Losses:
        """The losses of one batch, which holds the first sets of all videos, then the second sets.

        With `owners_B2` (`Batch.owners_B2`) videos of one group are not each other's negatives.
        """
        return self.losses(self.project(set_tokens_SE, clip_tokens_SVE, features_SVD, masked_SV, owners_B2))

    def project(
        self,
        set_tokens_SE: Tensor,
        clip_tokens_SVE: Tensor,
        features_SVD: Tensor,
        masked_SV: Tensor,
        owners_B2: Tensor | None = None,
    ) -> Projections:
        """The inputs of the losses, at least float32. Only masked clips go through the prediction head."""
        masked = masked_SV.flatten().nonzero().squeeze(1)
        if owners_B2 is None:
            no_owners = masked.new_zeros(0, 2)
            owners, all_owners = (no_owners, no_owners), no_owners
        else:
            all_owners = owners_B2.repeat(2, 1).repeat_interleave(masked_SV.shape[1], 0)
            owners = (owners_B2, all_owners[masked])
        tokens_TE, features_TD = clip_tokens_SVE.flatten(0, 1), features_SVD.flatten(0, 1)
        empty = set_tokens_SE.new_zeros(0, self.options.contrast_width)
        if self.options.set_weight:
            first, second = _unit(self.set_head(set_tokens_SE)).chunk(2)
        else:
            first = second = empty
        if not self.options.clip_weight:
            return Projections(first, second, empty, empty, masked[:0], *owners, all_owners)
        predicted = self.clip_head(tokens_TE[masked])
        row_numbers = torch.arange(len(masked), device=masked.device)
        if self.options.clip_objective == "smooth_l1":
            return Projections(
                first,
                second,
                _at_least_float32(predicted),
                F.layer_norm(features_TD[masked], features_TD.shape[1:]),
                row_numbers,
                *owners,
                all_owners,
            )
        if self.options.clip_objective == "cosine":
            targets = _unit(features_TD[masked])
            return Projections(first, second, _unit(predicted), targets, row_numbers, *owners, all_owners)
        if self.options.candidates == "masked":
            features_TD, masked, all_owners = features_TD[masked], row_numbers, owners[1]
        targets = _unit(self.target_head(features_TD))
        return Projections(first, second, _unit(predicted), targets, masked, *owners, all_owners)

    def compile_heads(self) -> None:
        """Compile the heads, for any number of rows: the number of masked clips differs from step to step."""
        for head in self.children():
            head.compile(dynamic=True)

    def losses(self, projections: Projections) -> Losses:
        """The losses of the global batch, from the projections of this worker and of the others.

        If no clip of the batch is masked, the masked clip loss is 0.
        """
        options = self.options
        counts = WorkerCounts.from_local(
            [len(projections.first_BC), len(projections.targets), len(projections.predicted)], self
        )
        set_sum, set_hits = self._set_contrast(
            projections.first_BC, projections.second_BC, projections.owners_B2, counts
        )
        clip_sum, clip_hits = self._masked_clips(projections, counts)
        num_sets, num_masked = max(2 * counts.total(_VIDEOS), 1), max(counts.total(_MASKED), 1)
        total = options.set_weight + options.clip_weight
        set_loss, clip_loss = set_sum / num_sets, clip_sum / num_masked
        loss = (options.set_weight * set_loss + options.clip_weight * clip_loss) / total
        logged = summed_over_workers(
            torch.stack([loss, set_loss, clip_loss, set_hits / num_sets, clip_hits / num_masked]).detach()
        )
        return Losses(loss * world_size(), *logged)

    @torch.no_grad()
    def set_top1(self, set_tokens_SE: Tensor, owners_B2: Tensor | None = None) -> Tensor:
        """Top-1 accuracy of the set contrast in the global batch, a fraction in [0, 1]; all workers must call this."""
        first_BC, second_BC = _unit(self.set_head(set_tokens_SE)).chunk(2)
        owners = first_BC.new_zeros((0, 2), dtype=torch.int64) if owners_B2 is None else owners_B2
        counts = WorkerCounts.from_local([len(first_BC)], self)
        _, hits = self._set_contrast(first_BC, second_BC, owners, counts)
        return summed_over_workers(hits / (2 * counts.total(_VIDEOS)))

    def _set_contrast(
        self, first_BC: Tensor, second_BC: Tensor, owners_B2: Tensor, counts: WorkerCounts
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and number of hits of this worker's sets, with the sets of all workers as candidates."""
        loss, hits = first_BC.new_zeros(()), first_BC.new_zeros(())
        if not counts.total(_VIDEOS):
            return loss, hits
        positives = torch.arange(len(first_BC), device=first_BC.device) + counts.offset(_VIDEOS)
        same_group = _same_group(owners_B2, owners_B2, counts, _VIDEOS)
        for anchors, candidates in ((first_BC, second_BC), (second_BC, first_BC)):
            logits = anchors @ gathered(candidates, counts.per_worker(_VIDEOS)).T / self.options.set_temperature
            logits = logits if same_group is None else logits.masked_fill(same_group, -torch.inf)
            loss = loss + F.cross_entropy(logits, positives, reduction="sum")
            hits = hits + (logits.argmax(1) == positives).sum()
        return loss, hits

    def _masked_clips(self, projections: Projections, counts: WorkerCounts) -> tuple[Tensor, Tensor]:
        """Summed loss and number of hits of this worker's masked clips; a regression has no hits."""
        predicted, targets = projections.predicted, projections.targets
        no_hits = predicted.new_zeros(())
        if self.options.clip_objective == "smooth_l1":
            return F.smooth_l1_loss(predicted, targets, reduction="none").mean(1).sum(), no_hits
        if self.options.clip_objective == "cosine":
            return (1 - (predicted * targets).sum(1)).sum(), no_hits
        if not counts.total(_TARGETS):
            return (predicted.sum() + targets.sum()) * 0.0, no_hits
        candidates = gathered(targets, counts.per_worker(_TARGETS))
        logits = predicted @ candidates.T / self.options.clip_temperature
        same_group = _same_group(projections.predicted_owners, projections.target_owners, counts, _TARGETS)
        logits = logits if same_group is None else logits.masked_fill(same_group, -torch.inf)
        positives = projections.target_rows_M + counts.offset(_TARGETS)
        return F.cross_entropy(logits, positives, reduction="sum"), (logits.argmax(1) == positives).sum()


def _same_group(owners: Tensor, candidates: Tensor, counts: WorkerCounts, kind: int) -> Tensor | None:
    """Whether each of the candidates of all workers is of another video of the same group; None without owners."""
    if not candidates.shape[0]:
        return None
    groups, videos = gathered(candidates, counts.per_worker(kind)).T
    return (owners[:, :1] == groups) & (owners[:, 1:] != videos)


def _head(*widths: int) -> nn.Sequential:
    """An MLP through these widths, without biases."""
    layers: list[nn.Module] = []
    for in_width, out_width in itertools.pairwise(widths):
        layers += [nn.Linear(in_width, out_width, bias=False), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _at_least_float32(values: Tensor) -> Tensor:
    """Half precision converted to float32, because losses are not computed in half precision."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _unit(values: Tensor) -> Tensor:
    return F.normalize(_at_least_float32(values), dim=-1)
