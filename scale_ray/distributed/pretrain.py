"""Store to aggregator, as Ray Train workers.

Each worker reads the store itself, trains its share of every global batch, and all report together when
there is a checkpoint. Metrics go from the first worker through a queue to the driver, which alone shows
progress and writes to MLflow.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Queue

from scale_ray.aggregator import Aggregator
from scale_ray.config import Cluster, PretrainConfig, Tracking
from scale_ray.distributed.cluster import connected
from scale_ray.errors import RunFailed
from scale_ray.progress import Progress
from scale_ray.resources import Size
from scale_ray.runs import RunFolder
from scale_ray.store import ClipFeatures, FeatureStore
from scale_ray.tracking import Experiment, RunRecord
from scale_ray.training import Metrics, Trainer, TrainingData, check_trainable, fit

_POLL_S = 0.5
_STATE_FILE = "state.pt"


def pretrain(
    store: str,
    run: str,
    runs: str,
    *,
    config: PretrainConfig,
    tracking: Tracking,
    cluster: Cluster,
    say: Callable[[str], None],
    quiet: bool = False,
    verbose: bool = False,
) -> RunFolder:
    """Train the aggregator on the training videos' `train` clips of a store.

    The same run name with the same configuration continues an unfinished run from its newest checkpoint.

    Raises
    ------
    UserError
        Before anything is started, where the store or the configuration cannot be trained.
    RunFailed
        Where a started training could not be finished.
    """
    features_store = FeatureStore(store)
    folder = RunFolder(runs, run)
    clips = training_clips(features_store)
    check_trainable(len(clips.video_ids), clips.features.shape[1], config.sets.set_size)
    described = {**config.to_dict(), "store": {"location": features_store.location}}
    folder.require(described)
    if folder.finished:
        say(f"run {run} is finished already: {folder.aggregator}")
        return folder
    with connected(cluster, verbose=verbose) as size:
        workers = config.training.workers or size.gpus or min(size.cpus, 2)
        workers = min(workers, len(clips.video_ids))
        experiment = Experiment(tracking, folder.runs)
        folder.claim(described)
        with _recorded(experiment, folder, described, features_store.fingerprint) as record:
            say(f"training on {len(clips.video_ids)} videos with {workers} worker{'s' if workers > 1 else ''}")
            state = _train(folder, features_store, config, workers, size, record, quiet)
            _finish(folder, features_store, config, state, clips.features.shape[2], record)
    return folder


def training_clips(store: FeatureStore) -> ClipFeatures:
    """What the aggregator may see: `train` clips of the videos of the training split."""
    return store.read_clips("train", "train")


def _recorded(
    experiment: Experiment, folder: RunFolder, described: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> AbstractContextManager[RunRecord]:
    """The MLflow run of this folder: a new one, or the one that an interrupted training left."""
    before = folder.mlflow_run()
    if before is not None:
        return experiment.resume(before)
    backbone = {name: fingerprint[name] for name in ("backbone", "weights") if name in fingerprint}
    record = experiment.start(folder.name, {**described, "features": backbone})
    folder.remember_mlflow_run(record.run_id)
    return record


def _train(
    folder: RunFolder,
    store: FeatureStore,
    config: PretrainConfig,
    workers: int,
    size: Size,
    record: RunRecord,
    quiet: bool,
) -> dict[str, Any]:
    """Run the workers to the end; the last checkpoint's state."""
    queue = Queue(actor_options={"num_cpus": 0})
    use_gpu = size.gpus > 0
    trainer = TorchTrainer(
        _work,
        train_loop_config={"store": store.location, "config": config.to_dict(), "queue": queue},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1} if use_gpu else {"CPU": min(1.0, size.cpus / workers)},
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=folder.location,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=config.training.max_restarts),
        ),
    )
    with Progress("pretrain", config.training.epochs, "epochs", quiet=quiet) as progress:
        listener = _Listener(queue, progress, record)
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RunFailed(f"training failed: {_cause_of(error)}") from error
        finally:
            listener.stop()
    assert result.checkpoint is not None, "a finished training has a checkpoint"
    return _read_state(result.checkpoint)


def _work(job: dict[str, Any]) -> None:
    """One worker: read the store, continue from a checkpoint if there is one, train to the end."""
    config = PretrainConfig.from_dict(job["config"])
    device = get_device()
    data = TrainingData.of(training_clips(FeatureStore(job["store"])), device)
    trainer = Trainer(data, config, device=device)
    history: list[Metrics] = []
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        state = _read_state(checkpoint)
        history = state["history"]
        trainer.restore(state)
    first = ray.train.get_context().get_world_rank() == 0

    def after_epoch(metrics: Metrics) -> None:
        history.append(metrics)
        if first:
            job["queue"].put(metrics)
        last = trainer.epoch == config.training.epochs
        if not last and trainer.epoch % config.training.checkpoint_epochs:
            return
        with tempfile.TemporaryDirectory() if first else nullcontext() as local:
            saved = None
            if local is not None:
                torch.save({**trainer.state(), "history": history}, os.path.join(local, _STATE_FILE))
                saved = ray.train.Checkpoint.from_directory(local)
            ray.train.report(metrics, checkpoint=saved)

    fit(trainer, after_epoch)


def _read_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    with checkpoint.as_directory() as local:
        return torch.load(os.path.join(local, _STATE_FILE), map_location="cpu", weights_only=True)


def _finish(
    folder: RunFolder,
    store: FeatureStore,
    config: PretrainConfig,
    state: Mapping[str, Any],
    feature_width: int,
    record: RunRecord,
) -> None:
    aggregator = Aggregator(feature_width, config.aggregator, store.fingerprint)
    aggregator.load_state_dict(state["aggregator"])
    folder.write_history(state["history"])
    with tempfile.TemporaryDirectory() as local:
        aggregator.save(local)
        record.file(local, "aggregator")
    # Last, since it is what makes the run a finished one.
    aggregator.save(folder.aggregator)


class _Listener:
    """A thread of the driver that passes on what the first worker reports."""

    def __init__(self, queue: Queue, progress: Progress, record: RunRecord) -> None:
        self._queue, self._progress, self._record = queue, progress, record
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._queue.shutdown()

    def _listen(self) -> None:
        while not self._stopped.wait(_POLL_S):
            self._pass_on()
        self._pass_on()

    def _pass_on(self) -> None:
        waiting = self._queue.get_nowait_batch(self._queue.qsize())
        for metrics in waiting:
            values = dict(metrics)
            epoch = int(values.pop("epoch"))
            self._record.metrics(values, epoch)
            self._progress.to(epoch, f"loss {values['loss']:.3f}, set top-1 {values['set_top1']:.2f}")


def _cause_of(error: BaseException) -> str:
    """The worker's own last line, from under Ray's wrapping."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
