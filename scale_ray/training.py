"""Training the aggregator: one step, optimiser, schedule and state; all that is not Ray.

With an initialised `torch.distributed` process group each process is one worker of the same run.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scale_ray.aggregator import Aggregator
from scale_ray.config import PretrainConfig
from scale_ray.errors import RunFailed, UserError
from scale_ray.objective import Objective
from scale_ray.sets import draw_sets, dropout_seed, normalised_positions, shuffled, video_keys
from scale_ray.store import ClipFeatures

Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainingData:
    """Stored clips on the device: features (videos, N, D), normalised positions (videos, N, 7), keys."""

    features: Tensor
    positions: Tensor
    keys: Tensor

    @classmethod
    def of(cls, clips: ClipFeatures, device: torch.device) -> TrainingData:
        return cls(
            torch.from_numpy(clips.features).to(device),
            normalised_positions(torch.from_numpy(clips.positions)).to(device),
            video_keys(clips.video_ids).to(device),
        )


def check_trainable(num_videos: int, num_clips: int, set_size: int) -> None:
    """Refuse, before anything is started, what cannot be trained.

    Raises
    ------
    UserError
        With fewer than two videos, or fewer stored clips a video than two sets need.
    """
    if num_videos < 2:
        raise UserError(f"expected at least 2 training videos in the store, found {num_videos}")
    if num_clips < 2 * set_size:
        raise UserError(
            f"set_size: expected at most {num_clips // 2}, half of the {num_clips} clips that the store holds a "
            f"video, found {set_size}"
        )


class Trainer:
    """One worker's part of a pretraining run.

    The global batch is the smaller of the batch option and the number of videos, made a multiple of the
    number of workers. Everything random depends on (seed, epoch, video) or (seed, epoch, worker), so a
    state saved between two epochs continues as if nothing had happened.
    """

    def __init__(
        self,
        data: TrainingData,
        config: PretrainConfig,
        *,
        device: torch.device,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        training = config.training
        num_videos, num_clips, feature_width = data.features.shape
        check_trainable(num_videos, num_clips, config.sets.set_size)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.workers = dist.get_world_size() if dist.is_initialized() else 1
        self.batch = min(training.batch, num_videos) // self.workers * self.workers
        if self.batch == 0:
            raise UserError(f"expected at least one video a worker, found {num_videos} for {self.workers} workers")
        self.steps_per_epoch = num_videos // self.batch
        self.data, self.config, self.device = data, config, device
        self.epoch = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.aggregator = Aggregator(feature_width, config.aggregator, origin).to(device)
            self.objective = Objective(feature_width, config.aggregator.width, config.objective).to(device)
        self.parameters = [*self.aggregator.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": training.weight_decay},
                # Biases, norms and the two tokens are vectors.
                {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
        )
        num_steps = training.epochs * self.steps_per_epoch
        num_warmup = math.ceil(training.warmup_share * num_steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_then_cosine(step, num_warmup, num_steps)
        )

    def run_epoch(self) -> Metrics:
        """Train on every video once, but for the tail that fills no batch; the epoch's mean metrics."""
        self.aggregator.train()
        seed = self.config.training.seed
        torch.manual_seed(dropout_seed(seed=seed, epoch=self.epoch, worker=self.rank))
        order = shuffled(len(self.data.keys), seed=seed, epoch=self.epoch).to(self.device)
        share = self.batch // self.workers
        began = time.perf_counter()
        sums: dict[str, Tensor] = {}
        learning_rate = float(self.schedule.get_last_lr()[0])
        for step in range(self.steps_per_epoch):
            start = step * self.batch + self.rank * share
            for name, value in self.step(order[start : start + share]).items():
                sums[name] = sums[name] + value if name in sums else value
        metrics = {name: float(value) / self.steps_per_epoch for name, value in sums.items()}
        elapsed_s = time.perf_counter() - began
        self.epoch += 1
        if not math.isfinite(metrics["loss"]):
            raise RunFailed(f"the loss is not finite in epoch {self.epoch}: {metrics['loss']}")
        num_seen = self.steps_per_epoch * self.batch
        return {
            "epoch": self.epoch,
            **metrics,
            "learning_rate": learning_rate,
            "videos_per_s": num_seen / elapsed_s,
            "clips_per_s": num_seen * 2 * self.config.sets.set_size / elapsed_s,
        }

    def step(self, rows_B: Tensor) -> dict[str, Tensor]:
        """One step on this worker's videos of the batch: rows of the training data, int64 (B,)."""
        sets = self.config.sets
        drawn = draw_sets(
            self.data.keys[rows_B],
            self.data.features.shape[1],
            sets.set_size,
            sets.mask_ratio,
            seed=self.config.training.seed,
            epoch=self.epoch,
        )
        rows_S1 = torch.cat([rows_B, rows_B])[:, None]
        features = self.data.features[rows_S1, drawn.clips_SV].float()
        positions = self.data.positions[rows_S1, drawn.clips_SV]
        set_tokens, clip_tokens = self.aggregator(features, positions, drawn.masked_SV)
        losses = self.objective(set_tokens, clip_tokens, features, drawn.masked_SV)
        self.optimizer.zero_grad()
        losses.loss.backward()
        self._average_gradients()
        self.optimizer.step()
        self.schedule.step()
        options = self.config.objective
        loss = options.set_weight * losses.set_loss + options.clip_weight * losses.clip_loss
        return {
            "loss": loss / (options.set_weight + options.clip_weight),
            "set_loss": losses.set_loss,
            "clip_loss": losses.clip_loss,
            "set_top1": losses.set_top1,
            "clip_top1": losses.clip_top1,
        }

    def state(self) -> dict[str, Any]:
        """All that continuing needs, as tensors and plain values."""
        return {
            "aggregator": self.aggregator.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.aggregator.load_state_dict(state["aggregator"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(dict(state["schedule"]))
        self.epoch = state["epoch"]

    def _average_gradients(self) -> None:
        """Mean gradient over the workers: the objective's scaling makes it that of the global batch."""
        if self.workers == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.workers
        sizes = [p.numel() for p in self.parameters]
        for parameter, part in zip(self.parameters, flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)


def fit(trainer: Trainer, after_epoch: Callable[[Metrics], None]) -> None:
    """Train to the last epoch, from wherever the trainer stands."""
    for _ in itertools.repeat(None, trainer.config.training.epochs - trainer.epoch):
        after_epoch(trainer.run_epoch())


def warmup_then_cosine(step: int, num_warmup: int, num_steps: int) -> float:
    """Share of the peak learning rate at a step: linear to 1, then a cosine to 0."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    passed = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(passed, 1.0)))
