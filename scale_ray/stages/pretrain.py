"""A feature store to a trained aggregator."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scale_ray.aggregator import Aggregator
from scale_ray.config import PretrainConfig, Training
from scale_ray.console import Console, Result
from scale_ray.distributed.cluster import connected
from scale_ray.distributed.resources import ClusterSize
from scale_ray.distributed.workers import pretraining_clips, run_workers
from scale_ray.errors import UserError
from scale_ray.files.locations import join, showable
from scale_ray.hashing import digest
from scale_ray.pretraining import check_trainable, final_weights, trained_on
from scale_ray.store import StoredClips, TrainingStores, check_modes
from scale_ray.tracking import Experiment, RunFolder, RunRecord

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = {"loss": "loss", "set_top1": "set contrast top-1", "clip_top1": "masked clip top-1"}


@dataclass(frozen=True)
class PretrainResult(Result):
    """A finished run; other stages take it as their checkpoint."""

    folder: RunFolder

    @property
    def aggregator(self) -> str:
        """The folder or URI of the trained aggregator."""
        return self.folder.aggregator

    def __fspath__(self) -> str:
        return self.folder.location

    def lines(self) -> list[str]:
        history = self.folder.history()
        first, last = history[0], history[-1]
        shown = {name: text for name, text in _SHOWN.items() if None not in (first.get(name), last.get(name))}
        changes = [f"{text} {first[name]:.3f} -> {last[name]:.3f}" for name, text in shown.items()]
        if last.get("position_top1") is not None:
            changes.append(f"set contrast top-1 from positions alone {last['position_top1']:.3f}")
        return [f"{', '.join(changes)} over {int(last['epoch'])} epochs", f"aggregator: {self.aggregator}"]

    def values(self) -> dict[str, Any]:
        return {
            "aggregator": self.aggregator,
            "mlflow_run": self.folder.mlflow_run(),
            "last_epoch": self.folder.history()[-1],
        }

    def to_pandas(self) -> pd.DataFrame:
        """A row per epoch, with its metrics."""
        import pandas as pd

        return pd.DataFrame(self.folder.history())

    def pictures(self) -> list[bytes]:
        from scale_ray.reports import losses_figure  # imported here, since it brings scikit-learn (1.5 s)

        return [losses_figure(self.folder.history())]


def pretrain(store: str, run: str, *, runs: str = "runs", config: PretrainConfig, console: Console) -> PretrainResult:
    """Train the aggregator on the clips of a store's training videos (section 3 of the paper).

    `store` names one store, or several of the same backbone and sampling, separated by commas.
    The same run name with the same configuration continues an unfinished run from its newest checkpoint.

    Raises
    ------
    UserError
        Before anything is started, if the store or the configuration cannot be trained.
    RunFailed
        If a started training could not be finished.
    """
    return pretrain_below(None, store, run, runs=runs, config=config, console=console)


def pretrain_below(
    parent: str | None, store: str, run: str, *, runs: str, config: PretrainConfig, console: Console
) -> PretrainResult:
    """As `pretrain`; with the id of a `parent`, the MLflow run is a child of that one."""
    stores = TrainingStores.open(store, config.training.store_weights)
    folder = RunFolder(runs, run)
    for member in stores.members:
        check_modes(member, "pretrain_mode", config.training.pretrain_mode)
    clips, held_out = pretraining_clips(stores, config)
    check_trainable(len(clips), clips.num_clips, config.sets.set_size)
    if config.training.held_out_share and not len(held_out):
        raise UserError(
            f"held_out_share: expected videos to hold out of the {len(clips)}, found none; use a larger one"
        )
    locations = [member.location for member in stores.members]
    # Of several a list, since what is recorded shows every URI without its options.
    described = {**config.to_dict(), "store": {"location": locations if len(locations) > 1 else locations[0]}}
    folder.check_config(described, [f"training.{name}" for name in Training.HOW])
    if folder.finished:
        console.say(f"run {run} is finished already: {folder.aggregator}")
        return PretrainResult(folder)
    with connected(config.cluster, verbose=console.verbose) as size:
        size = size.selected("worker_labels", config.cluster.worker_labels)
        workers = _num_workers(config, size, min(len(clips), len(held_out) or len(clips)))
        experiment = Experiment(config.tracking, folder.runs, console)
        folder.write_config(described)
        with _mlflow_run(experiment, parent, folder, described, stores, console) as record:
            count = "..".join(map(str, sorted(set(workers)))) + (" worker" if workers == (1, 1) else " workers")
            aside = f" ({len(held_out)} held out)" if len(held_out) else ""
            console.say(f"training on {len(clips)} videos{aside} with {count}")
            _say_incomplete(stores, config, console)
            state = run_workers(folder, stores, config, workers, size, record, console)
            _finish(folder, stores, config, state, clips, record, console)
    return PretrainResult(folder)


def _say_incomplete(stores: TrainingStores, config: PretrainConfig, console: Console) -> None:
    """Say how many training videos are left out because they lack clips of another mode than `train`."""
    training = config.training
    if training.pretrain_mode == "train":
        return
    everything = training.pretrain_on == "all"
    left_out = stores.num_incomplete(training.pretrain_mode, split=config.splits.split, everything=everything)
    if left_out:
        console.say(f"{left_out} training videos lack {training.pretrain_mode.replace('+', ' or ')} clips: left out")


def _num_workers(config: PretrainConfig, size: ClusterSize, num_videos: int) -> tuple[int, int]:
    """Minimum and maximum number of workers."""
    fitting = size.gpus or min(size.cpus, 2)
    low, high = config.training.num_workers or (fitting, fitting)
    return min(low, num_videos), min(high, num_videos)


def _mlflow_run(
    experiment: Experiment,
    parent: str | None,
    folder: RunFolder,
    described: Mapping[str, Any],
    stores: TrainingStores,
    console: Console,
) -> AbstractContextManager[RunRecord]:
    """The MLflow run of this folder: the one that an interrupted training left if MLflow has it, or a new one."""
    also_in = f"{join(folder.location, 'history.parquet')} has the metrics of all epochs when the run is finished"
    before = folder.mlflow_run()
    if before is not None:
        if (resumed := experiment.resume(before, folder.name, also_in=also_in)) is not None:
            return resumed
        console.say(f"MLflow does not have run {before} any more: going on with a new one")
    options = {**described, "features": stores.fingerprint}
    record = experiment.start(folder.name, options, parent=parent, also_in=also_in)
    folder.remember_mlflow_run(record.run_id)
    fingerprint = digest(json.dumps(stores.fingerprint, sort_keys=True))
    for store in stores.members:
        name = showable(store.location).rstrip("/").rpartition("/")[2]
        profile = {"videos": len(store.videos()), "feature_width": store.feature_width()}
        record.dataset(name or "features", store.location, fingerprint, profile)
    return record


def _finish(
    folder: RunFolder,
    stores: TrainingStores,
    config: PretrainConfig,
    state: Mapping[str, Any],
    clips: StoredClips,
    record: RunRecord,
    console: Console,
) -> None:
    seen = trained_on(stores.members, clips.video_ids, config.sets.set_size, clips.mode)
    aggregator = Aggregator(clips.feature_width, config.aggregator, stores.origin, seen)
    aggregator.load_state_dict(final_weights(state, config))
    folder.write_history(state["history"])
    with tempfile.TemporaryDirectory() as local:
        aggregator.save(local)
        record.file(local, "aggregator")
        # MLflow shows a model's files among its run's: under another name than the run's own.
        reason = record.trained_model(local, f"{folder.name}-aggregator", int(state["epoch"]))
        if reason is not None:
            console.say(f"MLflow does not list the aggregator as a model: {reason}")
    if config.tracking.register is not None:
        record.register("aggregator", config.tracking.register)
    # Written last: its presence marks the run as finished.
    aggregator.save(folder.aggregator)
