"""Store to aggregator, as Ray Train workers.

Each worker reads the store itself and trains on its slice of every global batch; at a checkpoint all workers report
to Ray together. The first worker sends the metrics over a channel to the driver, and only the driver shows progress
and writes to MLflow.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer, get_device

from scale_ray.clip_sets import ResidentClips, open_source
from scale_ray.config import PretrainConfig, Probing, parse_labels
from scale_ray.console import Console
from scale_ray.distributed.agreement import Agreement, Request
from scale_ray.distributed.channel import ChannelReader, open_channel
from scale_ray.distributed.failures import comes_back, failing_as, is_lost_start, training_failure
from scale_ray.distributed.rendezvous import Rendezvous
from scale_ray.distributed.resources import ClusterSize
from scale_ray.errors import RunFailed, Terminated, UserError, first_line
from scale_ray.files.failures import explained
from scale_ray.files.locations import atomic_write, check_within, exists, join, showable
from scale_ray.files.small_files import read_json
from scale_ray.pretraining import Metrics, Trainer, fit
from scale_ray.probes import TrainingMonitor
from scale_ray.store import StoredClips, TrainingStores
from scale_ray.tracking import RunFolder, RunRecord

# Interval at which the metrics of single steps are sent to the driver.
_SEND_S = 2.0
_STATE_FILE = "state.pt"
_CHECKPOINTS = "checkpoints"
# Attempts to start the workers, each of which may wait a minute for room on the cluster; Ray has no limit of its own.
_MAX_FAILED_STARTS = 30


def pretraining_clips(stores: TrainingStores, config: PretrainConfig) -> tuple[StoredClips, StoredClips]:
    """The clips to train on, and those of the held-out videos."""
    return stores.training_clips(
        config.training.held_out_share,
        split=config.splits.split,
        everything=config.training.pretrain_on == "all",
        mode=config.training.pretrain_mode,
    )


def run_workers(
    folder: RunFolder,
    stores: TrainingStores,
    config: PretrainConfig,
    workers: tuple[int, int],
    size: ClusterSize,
    record: RunRecord,
    console: Console,
) -> dict[str, Any]:
    """Run the workers to the end; returns the state of the last checkpoint.

    `workers` holds the minimum and the maximum number of workers.

    Raises
    ------
    UserError, RunFailed
        If the training could not be finished.
    """
    _check_checkpoints(folder.location)
    channel = open_channel()
    training = config.training
    with console.progress("pretrain", training.epochs, "epochs") as progress:
        listener = ChannelReader(channel, progress, record, console.say)
        try:
            with listener.stopping_at_sigterm():
                for attempt in itertools.count():
                    try:
                        result = _trainer(folder, stores, config, workers, size, channel).fit()
                        break
                    except ray.train.TrainingFailedError as error:
                        # Ray Train restarts workers that train, but not those that are lost while they are started.
                        if not is_lost_start(error) or listener.failure or attempt >= training.max_restarts:
                            raise
                        console.say(f"the workers are started again: {training_failure(error)}")
        except ray.train.TrainingFailedError as error:
            listener.stop()
            raise listener.failure or training_failure(error) from error
        finally:
            listener.stop()
    if listener.failure is not None:
        raise listener.failure
    if listener.is_stopped:
        raise Terminated
    assert result.checkpoint is not None, "a finished training has a checkpoint"
    return _read_state(result.checkpoint)


def _trainer(
    folder: RunFolder,
    stores: TrainingStores,
    config: PretrainConfig,
    workers: tuple[int, int],
    size: ClusterSize,
    channel: Any,
) -> TorchTrainer:
    """Ray's trainer, which continues from the checkpoints in the folder of the run."""
    use_gpu = size.gpus > 0
    training = config.training
    by_validation = {"checkpoint_score_attribute": "validation_loss", "checkpoint_score_order": "min"}
    return TorchTrainer(
        _work,
        train_loop_config={
            "stores": stores.location,
            "config": config.to_dict(),
            "channel": channel,
            "checkpoints": showable(join(folder.location, _CHECKPOINTS)),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers[0] if workers[0] == workers[1] else workers,
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1} if use_gpu else {"CPU": min(1.0, size.cpus / workers[1])},
            elastic_resize_monitor_interval_s=training.resize_s,
            label_selector=parse_labels(config.cluster.worker_labels) or None,
        ),
        torch_config=Rendezvous(backend="nccl" if use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=_CHECKPOINTS,
            storage_path=folder.location,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=training.keep_checkpoints, **(by_validation if training.held_out_share else {})
            ),
            failure_config=ray.train.FailureConfig(
                max_failures=training.max_restarts, controller_failure_limit=_MAX_FAILED_STARTS
            ),
        ),
    )


def _check_checkpoints(run: str) -> None:
    """Check the folders that Ray Train's snapshot names, before Ray reads it: Ray deletes old ones.

    Raises
    ------
    UserError
        If one is not a plain name, or the folder of the checkpoints is a link to elsewhere.
    """
    folder = join(run, _CHECKPOINTS)
    check_within(folder, run)
    snapshot = join(folder, "checkpoint_manager_snapshot.json")
    if not exists(snapshot):
        return
    for name in _folder_names(read_json(snapshot, "Ray Train's list of checkpoints", {})):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise UserError(f"{snapshot}: expected plain names of checkpoints, found {name!r}")
        check_within(join(folder, name), folder)


def _folder_names(value: Any, key: str = "") -> Iterator[str]:
    """Every text in a snapshot whose key, or that of the list around it, says that it names a folder."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield from _folder_names(inner, inner_key)
    elif isinstance(value, list):
        for inner in value:
            yield from _folder_names(inner, key)
    elif isinstance(value, str) and key.endswith(("dir_name", "dir_names")):
        yield value


def _work(job: dict[str, Any]) -> None:
    """One worker: read the store, resume from a checkpoint if there is one, train to the end.

    An error that a restart would repeat is sent over the channel, so that a restarted worker stops at once.
    """
    channel = job["channel"]
    with suppress(RayError):
        if ray.get(channel.failure.remote()) is not None:
            return
    try:
        with failing_as("training"):
            _train(job)
    except (UserError, RunFailed) as failure:
        if comes_back(failure.__cause__):
            with suppress(RayError):
                ray.get(channel.fail.remote(failure))
        raise


def _train(job: dict[str, Any]) -> None:
    config = PretrainConfig.from_dict(job["config"])
    context = ray.train.get_context()
    device = get_device()
    stores = TrainingStores.open(job["stores"], config.training.store_weights)
    clips, held_out = pretraining_clips(stores, config)
    groups = stores.groups() if config.objective.negatives == "other_groups" else None
    source = open_source(clips, config.ingest, device, context.get_local_world_size(), groups)
    is_first = context.get_world_rank() == 0
    resident = ResidentClips.from_clips(held_out.read(), device, groups) if len(held_out) else None
    trainer = Trainer(source, config, device=device, held_out=resident)
    reports = _Reports(job["channel"] if is_first else None, job["checkpoints"])
    state = _newest_state(job["channel"] if is_first else None)
    if state is not None:
        reports.history = state["history"]
        trainer.restore(state)
    monitor = TrainingMonitor(stores, clips, Probing()) if is_first and config.training.monitor_epochs else None
    reports.begin(trainer, context.get_world_size())
    with suppress(_Stopped):
        fit(trainer, reports, lambda trainer: {} if monitor is None else monitor(trainer.model))


class _Stopped(Exception):
    """The workers were asked to end, and have saved a checkpoint."""


class _Reports:
    """Sends the metrics of steps and epochs over the channel, and saves checkpoints through Ray Train."""

    def __init__(self, channel: Any, folder: str) -> None:
        """`folder` is that of the checkpoints, for messages.

        `channel` is None except in the first worker, because only that one sends metrics and saves.
        """
        self.history: list[Metrics] = []
        self._channel, self._folder = channel, folder
        self._steps: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._sent_s = time.monotonic()
        self._agreement = Agreement(channel)
        # What was asked for after the last step of an epoch is done after the epoch.
        self._is_asked = self._is_stopping = False

    def begin(self, trainer: Trainer, num_workers: int) -> None:
        """Tell the driver that the training begins or continues."""
        if self._channel is not None:
            self._channel.put.remote(("begun", {"step": trainer.steps, "workers": num_workers}))

    def after_step(self, trainer: Trainer, values: dict[str, torch.Tensor]) -> None:
        if self._channel is not None:
            self._steps.append((trainer.steps, values))
            if time.monotonic() - self._sent_s > _SEND_S:
                self._send_steps()
        every = trainer.config.training.checkpoint_steps
        request = self._agreement.after_step()
        # After the last step of an epoch, `after_epoch` saves the checkpoint.
        is_last = trainer.step_of_epoch == trainer.steps_per_epoch
        if not is_last and ((every and trainer.steps % every == 0) or request != Request.NOTHING):
            self._checkpoint(trainer, {"epoch": trainer.epoch})
        self._is_asked, self._is_stopping = is_last and request != Request.NOTHING, request == Request.STOP
        if self._is_stopping and not is_last:
            self._stop(trainer)

    def after_epoch(self, trainer: Trainer, metrics: Metrics) -> None:
        self.history.append(metrics)
        if self._channel is not None:
            self._send_steps()
            self._channel.put.remote(("epoch", metrics))
        training = trainer.config.training
        by_epoch = training.checkpoint_epochs and trainer.epoch % training.checkpoint_epochs == 0
        by_step = training.checkpoint_steps and trainer.steps % training.checkpoint_steps == 0
        if trainer.finished or by_epoch or by_step or self._is_asked:
            self._checkpoint(trainer, metrics)
        if self._is_stopping and not trainer.finished:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        """End the training; the checkpoint is saved."""
        if self._channel is not None:
            note = f"stopped after step {trainer.steps}, in epoch {trainer.epoch + 1}; a checkpoint is saved"
            ray.get(self._channel.put.remote(("stopped", note)))
        raise _Stopped

    def _send_steps(self) -> None:
        steps = [(step, {name: float(value) for name, value in values.items()}) for step, values in self._steps]
        self._channel.put.remote(("steps", steps))
        self._steps, self._sent_s = [], time.monotonic()

    def _checkpoint(self, trainer: Trainer, metrics: Metrics) -> None:
        """Save the state of the first worker; Ray Train waits until all workers have reported."""
        trainer.check_finite()
        with tempfile.TemporaryDirectory() if self._channel is not None else nullcontext() as local:
            saved = None
            if local is not None:
                # Not by torch itself, whose errors do not say that a disk is full.
                content = io.BytesIO()
                torch.save({**trainer.state(), "history": self.history}, content)
                with atomic_write(os.path.join(local, _STATE_FILE)) as file:
                    file.write(content.getbuffer())
                saved = ray.train.Checkpoint.from_directory(local)
            with explained(self._folder):
                ray.train.report({**metrics, "step": trainer.steps}, checkpoint=saved)


def _newest_state(channel: Any) -> dict[str, Any] | None:
    """The state of the newest readable checkpoint; None if there are no checkpoints.

    Raises
    ------
    RunFailed
        If there are checkpoints, but none of them can be read.
    """
    if ray.train.get_checkpoint() is None:
        return None
    reported = ray.train.get_all_reported_checkpoints()
    for report in sorted(reported, key=lambda report: -report.metrics["step"]):
        try:
            return _read_state(report.checkpoint)
        except Exception as error:  # noqa: BLE001 - the reader of a damaged file may raise any exception
            if channel is not None:
                name = os.path.basename(report.checkpoint.path)
                note = f"checkpoint {name} cannot be read ({first_line(error)}); resuming from the one before it"
                ray.get(channel.put.remote(("note", note)))
    raise RunFailed(f"expected a readable checkpoint, found {len(reported)} damaged ones; use another --run")


def _read_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    with checkpoint.as_directory() as local:
        return torch.load(os.path.join(local, _STATE_FILE), map_location="cpu", weights_only=True)
