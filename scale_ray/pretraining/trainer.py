"""Training of the aggregator: steps, epochs, validation and the state of a run, without Ray.

With an initialised `torch.distributed` process group, each process is one worker of the same run.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from scale_ray.aggregator import Aggregator
from scale_ray.clip_sets import Batch, ResidentClips, Source, Videos, WorkerSlice, dropout_seed
from scale_ray.config import PretrainConfig, Training
from scale_ray.errors import RunFailed, UserError
from scale_ray.pretraining.collectives import average_over_workers, rank, world_size
from scale_ray.pretraining.gradients import backward, clip_gradients
from scale_ray.pretraining.objective import Losses, Objective, Projections
from scale_ray.pretraining.optimizer import moving_average, optimizer_of
from scale_ray.warmup import schedule_of

Metrics = dict[str, float]

# How often to check that the loss is finite, in steps; each check synchronises the GPU.
_STEPS_PER_CHECK = 20
_MAX_VIDEOS_NAMED = 20


def check_trainable(num_videos: int, num_clips: int, set_size: int) -> None:
    """Check, before a training starts, that there are enough videos and clips.

    Raises
    ------
    UserError
        If there are fewer than two videos, or fewer stored clips per video than two sets need.
    """
    if num_videos < 2:
        raise UserError(f"expected at least 2 training videos in the store, found {num_videos}")
    if num_clips < 2 * set_size:
        raise UserError(
            f"set_size: expected at most {num_clips // 2}, half of the {num_clips} clips per video in the store, "
            f"found {set_size}"
        )


class Trainer:
    """One worker's part of a pretraining run.

    The size of the global batch does not depend on the number of workers: it is the `batch` option, or the number
    of videos if that is smaller. All random numbers depend on (seed, epoch, video) or (seed, step, worker, part),
    so a run that is resumed from a saved state is identical to an uninterrupted one.

    Raises
    ------
    UserError
        If there are too few videos or clips to train, or fewer videos than workers.
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
        self.source, self.held_out, self.config, self.device = source, held_out, config, device
        self.worker_slice = _worker_slice(source.num_videos, held_out, training.batch)
        self.steps_per_epoch = source.num_videos // self.worker_slice.batch_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.aggregator = Aggregator(source.feature_width, config.aggregator, origin).to(device)
            self.objective = Objective(source.feature_width, config.aggregator.width, config.objective).to(device)
        self.parameters = [*self.aggregator.parameters(), *self.objective.parameters()]
        self.average = moving_average(self.aggregator, training.ema_decay) if training.ema_decay else None
        self.optimizer = optimizer_of(self.parameters, training)
        self.schedule = schedule_of(self.optimizer, training.epochs * self.steps_per_epoch, training.warmup_share)
        self._bfloat16 = training.train_precision == "bfloat16" or (
            training.train_precision == "auto" and device.type == "cuda"
        )
        if training.compile:
            self.aggregator.compile()
            self.objective.compile_heads()
        # The position in the run: finished epochs, steps of the current one, and the sums of its metrics.
        self.epoch, self.step_of_epoch = 0, 0
        self._sums: dict[str, Tensor] = {}
        self._unchecked: list[tuple[int, Tensor, Videos]] = []
        # For early stopping: the lowest validation loss, its epoch and weights, and the validations since then.
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": 0, "since": 0, "aggregator": {}}

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self.epoch * self.steps_per_epoch + self.step_of_epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping has ended the run."""
        training = self.config.training
        return self.epoch >= training.epochs or bool(training.patience and self.best["since"] >= training.patience)

    @property
    def model(self) -> Aggregator:
        """The aggregator to evaluate: the moving average if there is one, otherwise the trained weights."""
        return self.aggregator if self.average is None else cast(Aggregator, self.average.module)

    def run_epoch(self, after_step: Callable[[dict[str, Tensor]], None] = lambda _: None) -> Metrics:
        """Train for the rest of the current epoch.

        An epoch uses every video once, except the remainder that does not fill a batch. Returns the mean metrics
        of the whole epoch; `after_step` is called with the metrics of each step, as tensors.

        Raises
        ------
        RunFailed
            If the loss is not finite; the message names the videos of the batch.
        """
        start_s, start_step = time.perf_counter(), self.step_of_epoch
        self.aggregator.train()
        batches = self.source.batches(
            self.worker_slice,
            self.config.sets,
            seed=self.config.training.seed,
            epoch=self.epoch,
            first_step=self.step_of_epoch,
        )
        for batch in batches:
            if self.step_of_epoch == 0 and self.config.objective.set_weight:
                # Once per epoch, which is enough; the sums are divided by the number of steps.
                self._sums["position_top1"] = self._position_top1(batch, self.aggregator) * self.steps_per_epoch
            values = self.step(batch)
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value.double()
            self.step_of_epoch += 1
            after_step(values)
        self.check_finite()
        elapsed_s = time.perf_counter() - start_s
        num_videos = (self.step_of_epoch - start_step) * self.worker_slice.batch_size
        metrics = {name: float(value) / self.steps_per_epoch for name, value in self._sums.items()}
        self.epoch, self.step_of_epoch, self._sums = self.epoch + 1, 0, {}
        return {
            "epoch": self.epoch,
            **metrics,
            "videos_per_s": num_videos / elapsed_s,
            "clips_per_s": num_videos * 2 * self.config.sets.set_size / elapsed_s,
            "memory_mib": self._memory_mib(),
        }

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train on this worker's slice of a batch; returns the metrics of the global batch, detached."""
        self.optimizer.zero_grad()
        parts = batch.parts(min(self.config.training.accumulate, len(batch.videos.rows_B)))
        projections = [partial(self._seeded, part, number) for number, part in enumerate(parts)]
        losses = backward(projections, self.objective.losses)
        average_over_workers(self.parameters)
        norm = clip_gradients(self.parameters, self.config.training.gradient_clip)
        learning_rate = torch.tensor(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.aggregator)
        self._unchecked.append((self.steps, losses.mean_loss, batch.videos))
        if self.device.type == "cpu" or len(self._unchecked) >= _STEPS_PER_CHECK:
            self.check_finite()
        return {**self._metrics(losses), "gradient_norm": norm, "learning_rate": learning_rate}

    @torch.no_grad()
    def validate(self) -> Metrics:
        """The losses on the held-out videos, without dropout; the sets and masks are the same each time."""
        assert self.held_out is not None
        num_videos = self.held_out.num_videos
        num_batches = max(num_videos // self.worker_slice.batch_size, 1)
        sums: Metrics = {}
        model = self.model.eval()
        for rows in torch.arange(num_videos, device=self.device).tensor_split(num_batches):
            part = self.worker_slice._replace(batch_size=len(rows))
            rows_B = rows[part.begin : part.begin + part.size]
            batch = self.held_out.draw(rows_B, self.config.sets, seed=self.config.training.seed, epoch=0)
            metrics = self._metrics(self.objective.losses(self._projected(batch, model)))
            if self.config.objective.set_weight:
                metrics["position_top1"] = self._position_top1(batch, model)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(rows)
        self.aggregator.train()
        return {f"validation_{name}": value / num_videos for name, value in sums.items()}

    def record_validation(self, validation_loss: float) -> None:
        """Update the best weights, and the number of validations without gain, on which early stopping depends.

        Raises
        ------
        RunFailed
            If the validation loss is not finite.
        """
        if not math.isfinite(validation_loss):
            raise RunFailed(f"the validation loss is {validation_loss} after epoch {self.epoch}")
        if validation_loss < self.best["loss"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"loss": validation_loss, "epoch": self.epoch, "since": 0, "aggregator": weights}
        else:
            self.best["since"] += 1

    def check_finite(self) -> None:
        """Check the losses since the last check; called before anything is saved.

        Raises
        ------
        RunFailed
            If one of them is not finite; the message names the videos of its batch.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked or bool(torch.stack([loss for _, loss, _ in unchecked]).isfinite().all()):
            return
        step, loss, videos = next(entry for entry in unchecked if not entry[1].isfinite())
        # All workers have the same loss, so all are here; the cause may be a video of another worker.
        ids = videos.ids()
        if self.worker_slice.num_workers > 1:
            ids_of_workers: list[list[str]] = [[] for _ in range(self.worker_slice.num_workers)]
            dist.all_gather_object(ids_of_workers, ids)
            ids = [video_id for worker_ids in ids_of_workers for video_id in worker_ids]
        more = f" and {len(ids) - _MAX_VIDEOS_NAMED} more" if len(ids) > _MAX_VIDEOS_NAMED else ""
        raise RunFailed(
            f"the loss is {float(loss)} at step {step + 1}, in epoch {self.epoch + 1}; the batch's videos: "
            f"{', '.join(ids[:_MAX_VIDEOS_NAMED])}{more}"
        )

    def state(self) -> dict[str, Any]:
        """Everything that is needed to resume the run, as tensors and plain values."""
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
        """Resume from the state of another trainer with the same configuration.

        Raises
        ------
        UserError
            If the order of the videos would differ, because one run streams its clips and the other does not.
        """
        if (state["ingest_mode"] == "stream") != (self.source.ingest_mode == "stream"):
            raise UserError(
                f"ingest: expected {state['ingest_mode']}, with which the run started, found {self.source.ingest_mode}"
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
        """The projections of one part of a batch, with the dropout seed of this step, worker and part."""
        seed = self.config.training.seed
        torch.manual_seed(dropout_seed(seed=seed, step=self.steps, worker=self.worker_slice.rank, part=part))
        return self._projected(batch, self.aggregator)

    def _projected(self, batch: Batch, aggregator: Aggregator) -> Projections:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            set_tokens, clip_tokens = aggregator(batch.features_SVD, batch.positions_SV7, batch.masked_SV)
            return self.objective.project(
                set_tokens, clip_tokens, batch.features_SVD, batch.masked_SV, self._owners(batch)
            )

    def _owners(self, batch: Batch) -> Tensor | None:
        """The groups of the videos, if those of one group are not each other's negatives."""
        if self.config.objective.negatives == "all":
            return None
        assert batch.owners_B2 is not None, "the source of a training without negatives of one group knows the groups"
        return batch.owners_B2

    @torch.no_grad()
    def _position_top1(self, batch: Batch, aggregator: Aggregator) -> Tensor:
        """Top-1 of the set contrast from the positions alone, float64: all clips are masked, without dropout."""
        was_training = aggregator.training
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            everything = torch.ones_like(batch.masked_SV)
            set_tokens, _ = aggregator.eval()(batch.features_SVD, batch.positions_SV7, everything)
            aggregator.train(was_training)
            return self.objective.set_top1(set_tokens, self._owners(batch)).double()

    def _metrics(self, losses: Losses) -> dict[str, Tensor]:
        """The metrics that the configured objective has."""
        options = self.config.objective
        metrics = {"loss": losses.mean_loss}
        if options.set_weight:
            metrics |= {"set_loss": losses.set_loss, "set_top1": losses.set_top1}
        if options.clip_weight:
            metrics |= {"clip_loss": losses.clip_loss}
        if options.clip_weight and options.clip_objective == "contrast":
            metrics |= {"clip_top1": losses.clip_top1}
        return metrics

    def _memory_mib(self) -> float:
        """Peak memory of this worker so far: of the GPU if it trains on one, otherwise of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Listener(Protocol):
    """Receives the metrics of a training while it runs."""

    def after_step(self, trainer: Trainer, values: dict[str, Tensor]) -> None: ...

    def after_epoch(self, trainer: Trainer, metrics: Metrics) -> None: ...


def _worker_slice(num_videos: int, held_out: ResidentClips | None, batch: int) -> WorkerSlice:
    """This worker's slice of the global batch, of which every worker needs at least one video."""
    batch_size, num_workers = min(batch, num_videos), world_size()
    smallest = min(batch_size, held_out.num_videos if held_out else batch_size)
    if smallest < num_workers:
        raise UserError(
            f"expected at least {num_workers} training videos per batch and held-out videos, one for each worker, "
            f"found {smallest}"
        )
    return WorkerSlice(batch_size, rank(), num_workers)


def run_epochs(
    trainer: Trainer,
    after_step: Callable[[dict[str, Tensor]], None] = lambda _: None,
    monitor: Callable[[Trainer], Metrics] = lambda _: {},
) -> Iterator[Metrics]:
    """Train to the end, from the current state of the trainer: the metrics of each epoch when it is done.

    Every `monitor_epochs` epochs, and after the last one, the loss on the held-out videos is computed, and
    `monitor` may add further metrics to those of the epoch.
    """
    training = trainer.config.training
    while not trainer.finished:
        metrics = trainer.run_epoch(after_step)
        if is_monitored(training, trainer.epoch):
            if trainer.held_out is not None:
                metrics |= trainer.validate()
                trainer.record_validation(metrics["validation_loss"])
            metrics |= monitor(trainer)
        yield metrics


def is_monitored(training: Training, epoch: int) -> bool:
    """Whether the aggregator is validated after this epoch, counted from 1."""
    every = training.monitor_epochs
    return bool(every) and (epoch % every == 0 or epoch == training.epochs)


def fit(trainer: Trainer, listener: Listener, monitor: Callable[[Trainer], Metrics] = lambda _: {}) -> None:
    """Train to the end as `run_epochs` does, with a listener that receives the metrics."""
    for metrics in run_epochs(trainer, lambda values: listener.after_step(trainer, values), monitor):
        listener.after_epoch(trainer, metrics)


def final_weights(state: Mapping[str, Any], config: PretrainConfig) -> dict[str, Tensor]:
    """The aggregator's weights at the end of a run.

    With early stopping these are the best weights; otherwise the moving average if there is one, otherwise the last
    weights.
    """
    if config.training.patience:
        return state["best"]["aggregator"]
    if state["average"] is not None:
        prefix = "module."
        return {name.removeprefix(prefix): w for name, w in state["average"].items() if name.startswith(prefix)}
    return state["aggregator"]
