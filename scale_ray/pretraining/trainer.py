"""Training the aggregator: one step, an epoch, the state between them; all that is not Ray.

With an initialised `torch.distributed` process group each process is one worker of the same run.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from scale_ray.aggregator import Aggregator
from scale_ray.clip_sets import Batch, ResidentClips, Source, Videos, WorkerSlice, dropout_seed
from scale_ray.config import PretrainConfig
from scale_ray.errors import RunFailed, UserError
from scale_ray.pretraining.collectives import average_over_workers
from scale_ray.pretraining.gradients import backward, clipped
from scale_ray.pretraining.objective import Losses, Objective, Projections
from scale_ray.pretraining.optimizer import moving_average, optimizer_of, schedule_of

Metrics = dict[str, float]

# How often to check that the loss is finite, in steps; each check synchronises the GPU.
_STEPS_UNSEEN = 20
_VIDEOS_NAMED = 20


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

    The global batch is the smaller of the batch option and the number of videos, whatever the number of
    workers. Everything random depends on (seed, epoch, video) or (seed, step, worker), so a state saved after
    any step continues as if nothing had happened.
    """

    def __init__(
        self,
        source: Source,
        config: PretrainConfig,
        *,
        device: torch.device,
        origin: Mapping[str, Any] | None = None,
        held_out: ResidentClips | None = None,
    ) -> None:
        training = config.training
        check_trainable(source.num_videos, source.num_clips, config.sets.set_size)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        workers = dist.get_world_size() if dist.is_initialized() else 1
        self.share = WorkerSlice(min(training.batch, source.num_videos), self.rank, workers)
        least = min(self.share.batch, held_out.num_videos if held_out else self.share.batch)
        if least < workers:
            raise UserError(f"expected videos, also held-out ones, for each of {workers} workers, found {least}")
        self.steps_per_epoch = source.num_videos // self.share.batch
        self.source, self.held_out, self.config, self.device = source, held_out, config, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.aggregator = Aggregator(source.feature_width, config.aggregator, origin).to(device)
            self.objective = Objective(source.feature_width, config.aggregator.width, config.objective).to(device)
        self.parameters = [*self.aggregator.parameters(), *self.objective.parameters()]
        self.average = moving_average(self.aggregator, training.ema_decay) if training.ema_decay else None
        self.optimizer = optimizer_of(self.parameters, training)
        self.schedule = schedule_of(self.optimizer, training.epochs * self.steps_per_epoch, training.warmup_share)
        self._halved = training.train_precision == "bfloat16" or (
            training.train_precision == "auto" and device.type == "cuda"
        )
        if training.compile:
            self.aggregator.compile()
            self.objective.compile_heads()
        # Where the run stands: whole epochs, steps of the next one, and the sums of their metrics.
        self.epoch, self.step_of_epoch = 0, 0
        self._sums: dict[str, Tensor] = {}
        self._unseen: list[tuple[int, Tensor, Videos]] = []
        # What early stopping judges by: the least validation loss, its weights, and validations since.
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": 0, "since": 0, "aggregator": {}}

    @property
    def steps(self) -> int:
        """Steps made so far."""
        return self.epoch * self.steps_per_epoch + self.step_of_epoch

    @property
    def finished(self) -> bool:
        training = self.config.training
        return self.epoch >= training.epochs or bool(training.patience and self.best["since"] >= training.patience)

    @property
    def model(self) -> Aggregator:
        """The weights that count: the moving average's, if there is one."""
        return self.aggregator if self.average is None else cast(Aggregator, self.average.module)

    def run_epoch(self, after_step: Callable[[dict[str, Tensor]], None] = lambda _: None) -> Metrics:
        """The rest of an epoch, in which every video comes once, but for the tail that fills no batch.

        Returns the whole epoch's mean metrics. `after_step` gets those of each step, as tensors.

        Raises
        ------
        RunFailed
            Where the loss is not finite: names the batch's videos.
        """
        began_s, began_step = time.perf_counter(), self.step_of_epoch
        self.aggregator.train()
        batches = self.source.batches(
            self.share,
            self.config.sets,
            seed=self.config.training.seed,
            epoch=self.epoch,
            first_step=self.step_of_epoch,
        )
        for batch in batches:
            values = self.step(batch)
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value.double()
            self.step_of_epoch += 1
            after_step(values)
        self.check_finite()
        elapsed_s = time.perf_counter() - began_s
        videos = (self.step_of_epoch - began_step) * self.share.batch
        metrics = {name: float(value) / self.steps_per_epoch for name, value in self._sums.items()}
        self.epoch, self.step_of_epoch, self._sums = self.epoch + 1, 0, {}
        return {
            "epoch": self.epoch,
            **metrics,
            "videos_per_s": videos / elapsed_s,
            "clips_per_s": videos * 2 * self.config.sets.set_size / elapsed_s,
            "memory_mib": self._memory_mib(),
        }

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step on this worker's part of a batch; the metrics of the global batch, detached."""
        self.optimizer.zero_grad()
        parts = batch.parts(min(self.config.training.accumulate, len(batch.videos.rows_B)))
        projections = [partial(self._seeded, part, number) for number, part in enumerate(parts)]
        losses = backward(projections, self.objective.losses)
        average_over_workers(self.parameters)
        norm = clipped(self.parameters, self.config.training.gradient_clip)
        learning_rate = torch.tensor(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.aggregator)
        self._unseen.append((self.steps, losses.mean_loss, batch.videos))
        if self.device.type == "cpu" or len(self._unseen) >= _STEPS_UNSEEN:
            self.check_finite()
        return {**self._told(losses), "gradient_norm": norm, "learning_rate": learning_rate}

    @torch.no_grad()
    def validation(self) -> Metrics:
        """The losses on the held-out videos, by the same draws each time; dropout off."""
        assert self.held_out is not None
        count = self.held_out.num_videos
        sums: Metrics = {}
        model = self.model.eval()
        for rows in torch.arange(count, device=self.device).tensor_split(max(count // self.share.batch, 1)):
            share = self.share._replace(batch=len(rows))
            mine = rows[share.begin : share.begin + share.size]
            batch = self.held_out.draw(mine, self.config.sets, seed=self.config.training.seed, epoch=0)
            for name, value in self._told(self.objective.losses(self._projected(batch, model))).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(rows)
        self.aggregator.train()
        return {f"validation_{name}": value / count for name, value in sums.items()}

    def judge(self, validation_loss: float) -> None:
        """Take a validation loss into account: the best weights so far, and whether to go on."""
        if not math.isfinite(validation_loss):
            raise RunFailed(f"the validation loss is {validation_loss} after epoch {self.epoch}")
        if validation_loss < self.best["loss"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"loss": validation_loss, "epoch": self.epoch, "since": 0, "aggregator": weights}
        else:
            self.best["since"] += 1

    def check_finite(self) -> None:
        """Look at the losses since the last look; called before anything is saved."""
        unseen, self._unseen = self._unseen, []
        if not unseen or bool(torch.stack([loss for _, loss, _ in unseen]).isfinite().all()):
            return
        step, loss, videos = next(entry for entry in unseen if not entry[1].isfinite())
        # The loss is everybody's, so all workers are here, and the culprit may be another's.
        ids = videos.ids()
        if self.share.workers > 1:
            of_workers: list[list[str]] = [[] for _ in range(self.share.workers)]
            dist.all_gather_object(of_workers, ids)
            ids = [video_id for of_worker in of_workers for video_id in of_worker]
        more = f" and {len(ids) - _VIDEOS_NAMED} more" if len(ids) > _VIDEOS_NAMED else ""
        raise RunFailed(
            f"the loss is {float(loss)} at step {step + 1}, in epoch {self.epoch + 1}; the batch's videos: "
            f"{', '.join(ids[:_VIDEOS_NAMED])}{more}"
        )

    def state(self) -> dict[str, Any]:
        """All that continuing needs, as tensors and plain values."""
        self.check_finite()
        return {
            "aggregator": self.aggregator.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "step_of_epoch": self.step_of_epoch,
            "sums": self._sums,
            "best": self.best,
            "ingest_mode": self.source.ingest_mode,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that another trainer of the same configuration had.

        Raises
        ------
        UserError
            Where the order of the videos would be another one.
        """
        if (state["ingest_mode"] == "stream") != (self.source.ingest_mode == "stream"):
            raise UserError(
                f"ingest: expected {state['ingest_mode']}, as the run began, found {self.source.ingest_mode}"
            )
        self.aggregator.load_state_dict(state["aggregator"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(dict(state["schedule"]))
        self.epoch, self.step_of_epoch = state["epoch"], state["step_of_epoch"]
        self._sums, self.best = dict(state["sums"]), dict(state["best"])

    def _seeded(self, batch: Batch, part: int) -> Projections:
        """The projections of a part of a batch, with the dropout that belongs to this step, worker and part."""
        seed = self.config.training.seed
        torch.manual_seed(dropout_seed(seed=seed, step=self.steps, worker=self.rank, part=part))
        return self._projected(batch, self.aggregator)

    def _projected(self, batch: Batch, aggregator: Aggregator) -> Projections:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._halved):
            set_tokens, clip_tokens = aggregator(batch.features_SVD, batch.positions_SV7, batch.masked_SV)
            return self.objective.project(set_tokens, clip_tokens, batch.features_SVD, batch.masked_SV)

    def _told(self, losses: Losses) -> dict[str, Tensor]:
        """The metrics that this objective has."""
        options = self.config.objective
        told = {"loss": losses.mean_loss}
        if options.set_weight:
            told |= {"set_loss": losses.set_loss, "set_top1": losses.set_top1}
        if options.clip_weight:
            told |= {"clip_loss": losses.clip_loss}
        if options.clip_weight and options.clip_objective == "contrast":
            told |= {"clip_top1": losses.clip_top1}
        return told

    def _memory_mib(self) -> float:
        """Peak memory of this worker so far: the device's where it has its own."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Listener(Protocol):
    """Who is told how a training goes."""

    def after_step(self, trainer: Trainer, values: dict[str, Tensor]) -> None: ...

    def after_epoch(self, trainer: Trainer, metrics: Metrics) -> None: ...


def fit(trainer: Trainer, listener: Listener, monitor: Callable[[Trainer], Metrics] = lambda _: {}) -> None:
    """Train to the end, from wherever the trainer stands.

    Every `monitor_epochs`, and after the last epoch, the held-out videos are looked at, and `monitor`
    may add to the epoch's metrics.
    """
    training = trainer.config.training
    while not trainer.finished:
        metrics = trainer.run_epoch(lambda values: listener.after_step(trainer, values))
        every = training.monitor_epochs
        if every and (trainer.epoch % every == 0 or trainer.epoch == training.epochs):
            if trainer.held_out is not None:
                metrics |= trainer.validation()
                trainer.judge(metrics["validation_loss"])
            metrics |= monitor(trainer)
        listener.after_epoch(trainer, metrics)


def final_weights(state: Mapping[str, Any], config: PretrainConfig) -> dict[str, Tensor]:
    """The aggregator's weights that a finished run leaves: the best, the moving average, or the last ones."""
    if config.training.patience:
        return state["best"]["aggregator"]
    if state["average"] is not None:
        prefix = "module."
        return {name.removeprefix(prefix): w for name, w in state["average"].items() if name.startswith(prefix)}
    return state["aggregator"]
