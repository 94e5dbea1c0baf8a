"""Trains heads on a frozen representation, those of all settings of a grid in one batched computation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from scale_ray.aggregator import videos_per_block
from scale_ray.clip_sets import dropout_seed, shuffled
from scale_ray.probes.targets import CLASSES, MULTILABEL, Targets
from scale_ray.warmup import schedule_of

_VIDEOS_AT_ONCE = 256


class Inputs(Protocol):
    """The clips of a dataset's videos as inputs of a head, always a new tensor."""

    @property
    def num_clips(self) -> int:
        """Clips per video."""
        ...

    def whole(self, rows: Tensor) -> Tensor:
        """All clips of some videos, float32 (B, N, d)."""
        ...

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor:
        """Randomly drawn sets of some videos, float32 (B, V, d)."""
        ...


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class TrainingSchedule:
    """How long a head is trained, and on which sets.

    `batch` videos per step, `set_size` clips per video, at least `epochs` epochs and at least `min_steps` steps. The
    draws of the sets repeat after `num_draws` epochs. The learning rate rises over `warmup_share` of the steps, then it
    falls to 0 by a cosine.
    """

    batch: int
    set_size: int
    epochs: int
    min_steps: int
    num_draws: int
    warmup_share: float

    def fitted_to(self, num_videos: int) -> TrainingSchedule:
        """This schedule with a batch of at most `num_videos` and enough epochs for `min_steps`."""
        batch = min(self.batch, num_videos)
        return replace(self, batch=batch, epochs=max(self.epochs, -(-self.min_steps // (num_videos // batch))))


@dataclass(frozen=True)
class Problem:
    """What a head learns: `targets` of all videos of a dataset, in their own units, from their `inputs`.

    `mean` and `scale` (d,) standardise the inputs.
    """

    inputs: Inputs
    targets: Tensor
    target_spec: Targets
    mean: Tensor
    scale: Tensor


class FittedHeads:
    """The trained heads of all settings; a score is the mean over the clips of a video."""

    def __init__(
        self,
        heads: list[nn.Module],
        settings: Sequence[Setting],
        problem: Problem,
        target_mean: Tensor,
        target_std: Tensor,
    ) -> None:
        self.heads, self.settings = heads, settings
        self._mean, self._scale, self._target_spec = problem.mean, problem.scale, problem.target_spec
        self._target_mean, self._target_std = target_mean, target_std

    @torch.no_grad()
    def scores(self, inputs: Inputs, rows: Tensor) -> Tensor:
        """Scores (G, videos, K) of G settings: probabilities of classes or labels, or numbers in their own units."""
        parts = []
        for part in rows.split(videos_per_block(_VIDEOS_AT_ONCE, inputs.num_clips)):
            clips = (inputs.whole(part) - self._mean) * self._scale
            parts.append(torch.stack([self._mean_scores(head(clips)) for head in self.heads]))
        return torch.cat(parts, 1)

    def _mean_scores(self, logits_BVK: Tensor) -> Tensor:
        if self._target_spec.kind == CLASSES:
            return logits_BVK.softmax(-1).mean(1)
        if self._target_spec.kind == MULTILABEL:
            return logits_BVK.sigmoid().mean(1)
        return logits_BVK.mean(1) * self._target_std + self._target_mean


def fit_heads(
    problem: Problem,
    rows: Tensor,
    make_head: Callable[[], nn.Module],
    settings: Sequence[Setting],
    schedule: TrainingSchedule,
    seed: int,
) -> FittedHeads:
    """Train one head per setting, all at once, on the videos of `rows`, int64; other videos are not used.

    All heads start with the same weights and see the same batches, so the result of a setting does not depend on the
    others (apart from dropout). AdamW, with the learning rate of `schedule_of`; the weights after the last step are
    kept.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = make_head()
        heads = [first, *(copy.deepcopy(first) for _ in settings[1:])]
        return _train(problem, rows, heads, settings, schedule.fitted_to(len(rows)), seed)


def _train(
    problem: Problem,
    rows: Tensor,
    heads: list[nn.Module],
    settings: Sequence[Setting],
    schedule: TrainingSchedule,
    seed: int,
) -> FittedHeads:
    targets, target_mean, target_std = _standardised(problem, rows)
    steps_per_epoch = len(rows) // schedule.batch
    for head in heads:
        head.train()
    weights, _ = stack_module_state(heads)  # name -> (G, ...)
    # Each setting trains views into the stacked weights, with its own learning rate and weight decay.
    views = [{name: stacked.detach()[g] for name, stacked in weights.items()} for g in range(len(heads))]
    optimizer = _optimizer(views, settings)
    learning_rate = schedule_of(optimizer, schedule.epochs * steps_per_epoch, schedule.warmup_share)
    for epoch in range(schedule.epochs):
        order = shuffled(len(rows), seed=seed, epoch=epoch)
        draw = epoch % schedule.num_draws
        for step, batch in enumerate(order[: steps_per_epoch * schedule.batch].split(schedule.batch)):
            inputs = problem.inputs.drawn(rows[batch], schedule.set_size, seed, draw)
            torch.manual_seed(dropout_seed(seed=seed, step=epoch * steps_per_epoch + step, worker=0, part=0))
            logits_GBVK = _logits(heads[0], weights, inputs.sub_(problem.mean).mul_(problem.scale))
            losses = [_loss(logits, targets[batch], problem.target_spec.kind) for logits in logits_GBVK]
            gradients = torch.autograd.grad(torch.stack(losses).sum(), list(weights.values()), materialize_grads=True)
            for name, stacked in zip(weights, gradients, strict=True):
                for view, gradient in zip(views, stacked, strict=True):
                    view[name].grad = gradient.contiguous()  # the fused step assumes the strides of the weight
            optimizer.step()
            learning_rate.step()
    for head, view in zip(heads, views, strict=True):
        head.load_state_dict(view, strict=False)  # buffers stay unchanged
        head.eval()
    return FittedHeads(heads, settings, problem, target_mean, target_std)


def _optimizer(views: Sequence[Mapping[str, Tensor]], settings: Sequence[Setting]) -> torch.optim.Optimizer:
    """AdamW over the weights of every setting; biases and other vectors are not decayed."""
    groups = [
        {"params": [weight for weight in view.values() if (weight.ndim > 1) == decays]}
        | {"lr": setting.learning_rate, "weight_decay": setting.weight_decay if decays else 0.0}
        for view, setting in zip(views, settings, strict=True)
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, fused=True)


def _logits(head: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Logits (G, B, V or 1, K) of all settings at once: `weights` (G, ...) replace the head's own."""
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be batched over models
        return vmap(lambda own: functional_call(head, own, (inputs,)), randomness="different")(weights)


def _loss(logits_BVK: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Cross-entropy of classes, binary cross-entropy of each label, or squared error; mean over videos and clips."""
    if kind == CLASSES:
        return F.cross_entropy(logits_BVK.flatten(0, 1), targets.repeat_interleave(logits_BVK.shape[1]))
    targets_BVK = targets[:, None].expand_as(logits_BVK)
    if kind == MULTILABEL:
        return F.binary_cross_entropy_with_logits(logits_BVK, targets_BVK)
    return F.mse_loss(logits_BVK, targets_BVK)


def _standardised(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Targets of the rows, numbers standardised; and the mean and standard deviation to undo this."""
    targets = problem.targets[rows]
    if problem.target_spec.kind in (CLASSES, MULTILABEL):
        return targets, torch.zeros(1), torch.ones(1)
    mean, std = targets.mean(0), targets.std(0, correction=0).clamp(min=1e-12)
    return (targets - mean) / std, mean, std
