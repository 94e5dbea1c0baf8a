"""Store to aggregator."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from scale_ray.aggregator.model import Aggregator
from scale_ray.config import Cluster, PretrainConfig, Tracking
from scale_ray.distributed.cluster import connected
from scale_ray.distributed.resources import Size
from scale_ray.distributed.workers import (
    _clips,
    _train,
)
from scale_ray.errors import UserError
from scale_ray.pretraining.provenance import trained_on
from scale_ray.pretraining.trainer import check_trainable, final_weights
from scale_ray.store.clip_reader import StoredClips
from scale_ray.store.feature_store import FeatureStore
from scale_ray.tracking.mlflow import Experiment, RunRecord
from scale_ray.tracking.run_folder import RunFolder


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
    clips, held_out = _clips(features_store, config)
    check_trainable(len(clips), clips.num_clips, config.sets.set_size)
    if config.training.held_out_share and not len(held_out):
        raise UserError(
            f"held_out_share: expected videos to hold out of the {len(clips)}, found none; use a larger one"
        )
    described = {**config.to_dict(), "store": {"location": features_store.location}}
    folder.require(described)
    if folder.finished:
        say(f"run {run} is finished already: {folder.aggregator}")
        return folder
    with connected(cluster, verbose=verbose) as size:
        workers = _workers(config, size, min(len(clips), len(held_out) or len(clips)))
        experiment = Experiment(tracking, folder.runs)
        folder.claim(described)
        with _recorded(experiment, folder, described, features_store.fingerprint) as record:
            told = "..".join(map(str, sorted(set(workers)))) + (" worker" if workers == (1, 1) else " workers")
            aside = f" ({len(held_out)} held out)" if len(held_out) else ""
            say(f"training on {len(clips)} videos{aside} with {told}")
            state = _train(folder, features_store, config, workers, size, record, quiet, say)
            _finish(folder, features_store, config, state, clips, record, tracking.register)
    return folder


def _workers(config: PretrainConfig, size: Size, num_videos: int) -> tuple[int, int]:
    """Least and largest number of workers."""
    fitting = size.gpus or min(size.cpus, 2)
    low, high = config.training.num_workers or (fitting, fitting)
    return min(low, num_videos), min(high, num_videos)


def _recorded(
    experiment: Experiment, folder: RunFolder, described: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> AbstractContextManager[RunRecord]:
    """The MLflow run of this folder: a new one, or the one that an interrupted training left."""
    before = folder.mlflow_run()
    if before is not None:
        return experiment.resume(before)
    record = experiment.start(folder.name, {**described, "features": fingerprint})
    folder.remember_mlflow_run(record.run_id)
    return record


def _finish(
    folder: RunFolder,
    store: FeatureStore,
    config: PretrainConfig,
    state: Mapping[str, Any],
    clips: StoredClips,
    record: RunRecord,
    register: str | None,
) -> None:
    seen = trained_on(store, clips.video_ids, config.sets.set_size)
    aggregator = Aggregator(clips.feature_width, config.aggregator, store.origin, seen)
    aggregator.load_state_dict(final_weights(state, config))
    folder.write_history(state["history"])
    with tempfile.TemporaryDirectory() as local:
        aggregator.save(local)
        record.file(local, "aggregator")
    if register is not None:
        record.register("aggregator", register)
    # Last, since it is what makes the run a finished one.
    aggregator.save(folder.aggregator)
