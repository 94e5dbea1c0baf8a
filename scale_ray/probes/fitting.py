"""Heads trained on a frozen representation: a whole grid of settings as one batched problem."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from scale_ray.clip_sets import dropout_seed, shuffled
from scale_ray.probes.targets import CLASSES, MULTILABEL, Targets

_VIDEOS_AT_ONCE = 256


class Inputs(Protocol):
    """Clips of a side's videos, as a head takes them: all of a video's, or randomly drawn sets; a fresh tensor."""

    def whole(self, rows: Tensor) -> Tensor: ...

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor: ...


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class TrainingSchedule:
    """How long a head is trained, and on what: videos of a batch, clips of a set, epochs and least steps."""

    batch: int
    set_size: int
    epochs: int
    min_steps: int
    num_draws: int


@dataclass(frozen=True)
class Problem:
    """What is to be learned from which clips: `targets` of all videos of the side, in their own units.

    `mean` and `scale` standardise the inputs.
    """

    inputs: Inputs
    targets: Tensor
    target_spec: Targets
    mean: Tensor
    scale: Tensor


class FittedHeads:
    """Heads of every setting, trained; their scores are means over the clips of a video."""

    def __init__(
        self,
        heads: list[nn.Module],
        settings: Sequence[Setting],
        problem: Problem,
        target_mean: Tensor,
        target_std: Tensor,
    ) -> None:
        self.heads, self.settings = heads, settings
        self._mean, self._scale, self._described = problem.mean, problem.scale, problem.target_spec
        self._target_mean, self._target_std = target_mean, target_std

    @torch.no_grad()
    def scores(self, inputs: Inputs, rows: Tensor) -> Tensor:
        """Scores (G, videos, K): probabilities of classes or labels, or numbers in units of the target."""
        parts = []
        for some in rows.split(_VIDEOS_AT_ONCE):
            clips = (inputs.whole(some) - self._mean) * self._scale
            parts.append(torch.stack([self._scored(head(clips)) for head in self.heads]))
        return torch.cat(parts, 1)

    def _scored(self, logits: Tensor) -> Tensor:
        if self._described.kind == CLASSES:
            return logits.softmax(-1).mean(1)
        if self._described.kind == MULTILABEL:
            return logits.sigmoid().mean(1)
        return logits.mean(1) * self._target_std + self._target_mean


def fit(
    problem: Problem,
    rows: Tensor,
    make_head: Callable[[], nn.Module],
    settings: Sequence[Setting],
    course: TrainingSchedule,
    seed: int,
) -> FittedHeads:
    """Train one head for each setting on some videos of a side, all of them at once.

    Every head begins with the same weights and sees the same batches: a setting's result does not depend
    on its neighbours (but for dropout). AdamW, the learning rate falling to 0 by a cosine over all steps;
    the last step counts. `rows` int64 are the videos that may be learned from; nothing else is looked at.
    """
    num_videos = len(rows)
    batch = min(course.batch, num_videos)
    steps_per_epoch = num_videos // batch
    epochs = max(course.epochs, -(-course.min_steps // steps_per_epoch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = make_head()
        heads = [first, *(copy.deepcopy(first) for _ in settings[1:])]
        return _train(problem, rows, heads, settings, course, seed, batch, steps_per_epoch, epochs)


def _train(
    problem: Problem,
    rows: Tensor,
    heads: list[nn.Module],
    settings: Sequence[Setting],
    course: TrainingSchedule,
    seed: int,
    batch: int,
    steps_per_epoch: int,
    epochs: int,
) -> FittedHeads:
    targets, target_mean, target_std = _standardised(problem, rows)
    # The weights of all heads lie one behind the other; the optimiser has a view of each setting's.
    parameters = [dict(head.named_parameters()) for head in heads]
    weights = {name: torch.stack([of[name].detach() for of in parameters]) for name in parameters[0]}
    of_settings = [{name: all_of[g] for name, all_of in weights.items()} for g in range(len(heads))]
    groups = [
        {"params": [p for p in of.values() if (p.ndim > 1) == decays], "lr": setting.learning_rate}
        | {"weight_decay": setting.weight_decay if decays else 0.0}
        for of, setting in zip(of_settings, settings, strict=True)
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps_per_epoch)
    for head in heads:
        head.train()
    for epoch in range(epochs):
        order = shuffled(len(rows), seed=seed, epoch=epoch)
        draw = epoch % course.num_draws
        for step, at in enumerate(order[: steps_per_epoch * batch].split(batch)):
            inputs = problem.inputs.drawn(rows[at], course.set_size, seed, draw)
            torch.manual_seed(dropout_seed(seed=seed, step=epoch * steps_per_epoch + step, worker=0, part=0))
            learned = {name: all_of.detach().requires_grad_() for name, all_of in weights.items()}
            logits_GBVK = _logits(heads[0], learned, inputs.sub_(problem.mean).mul_(problem.scale))
            losses = [_loss(logits, targets[at], problem.target_spec.kind) for logits in logits_GBVK]
            gradients = torch.autograd.grad(torch.stack(losses).sum(), list(learned.values()), materialize_grads=True)
            for name, all_of in zip(learned, gradients, strict=True):
                for of, gradient in zip(of_settings, all_of, strict=True):
                    of[name].grad = gradient.contiguous()  # the fused step takes the strides of the weight
            optimizer.step()
            schedule.step()
    for head, of in zip(heads, of_settings, strict=True):
        head.load_state_dict(of, strict=False)  # buffers stay as they are
        head.eval()
    return FittedHeads(heads, settings, problem, target_mean, target_std)


def _logits(head: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Of all settings at once, (G, B, V or 1, K): `weights` (G, ...) take the place of the head's own."""
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be batched over models
        return vmap(lambda of: functional_call(head, of, (inputs,)), randomness="different")(weights)


def _loss(logits_BVK: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Mean over videos and clips: cross-entropy, of single labels or of each label for itself, or squared error."""
    clips = logits_BVK.shape[1]
    if kind == CLASSES:
        return F.cross_entropy(logits_BVK.flatten(0, 1), targets.repeat_interleave(clips))
    wanted = targets[:, None].expand_as(logits_BVK)
    if kind == MULTILABEL:
        return F.binary_cross_entropy_with_logits(logits_BVK, wanted)
    return F.mse_loss(logits_BVK, wanted)


def _standardised(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Targets of the rows for training, and the mean and standard deviation taken out of numbers."""
    targets = problem.targets[rows]
    if problem.target_spec.kind in (CLASSES, MULTILABEL):
        return targets, torch.zeros(1), torch.ones(1)
    mean, std = targets.mean(0), targets.std(0, correction=0).clamp(min=1e-12)
    return (targets - mean) / std, mean, std
