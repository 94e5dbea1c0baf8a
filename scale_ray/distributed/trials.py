"""The search over mask ratio and set size, as Ray Tune trials.

A trial trains in one process, which is enough for a small aggregator; as many trials run at once as there are
CPUs or GPUs. Settings are ranked on videos held out of the training subset; the test subset is never used. Only
the driver writes to MLflow: one parent run, and one child run per trial.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import ray.tune

from scale_ray.config import PretrainConfig, Probing, Searching, SweepConfig
from scale_ray.console import Console, Progress
from scale_ray.distributed.failures import failing_as, failure_of
from scale_ray.distributed.resources import ClusterSize
from scale_ray.errors import RunFailed, UserError
from scale_ray.store import FeatureStore, StoredClips, training_clips
from scale_ray.tracking import Experiment, RunFolder, RunRecord

_REPORT_S = 1.0
_MONITORS = ("validation_knn_top1", "validation_halves_top1")
_LOSSES = ("loss", "set_loss", "clip_loss", "set_top1", "clip_top1", "validation_loss")
_LOGGED = (*_LOSSES, "learning_rate", *_MONITORS)


@dataclass(frozen=True)
class Trial:
    """One trial: its options by dotted name, its final training loss, and its score on the validation videos.

    `monitor` is the name of the metric and `value` its value, higher is better.
    """

    options: dict[str, Any]
    monitor: str
    value: float
    loss: float


def validation_split(store: FeatureStore, fraction: float, split: str | None = None) -> tuple[StoredClips, StoredClips]:
    """Split the training subset into clips to train on and clips to rank settings with.

    About `fraction` of the videos is used for validation; `split` names one of several official splits.

    Raises
    ------
    UserError
        If either part would be empty.
    """
    train, validation = training_clips(store, fraction, split=split)
    if not len(train) or not len(validation):
        raise UserError(
            f"validation_share: expected videos for both training and validation, found {len(train)} and "
            f"{len(validation)}; use more videos or another value"
        )
    return train, validation


def run_trials(
    folder: RunFolder,
    store: FeatureStore,
    config: SweepConfig,
    experiment: Experiment,
    parent: RunRecord,
    size: ClusterSize,
    console: Console,
) -> list[Trial]:
    """Run every trial of the grid, each as a child of the `parent` MLflow run; returns the trials, best first.

    Raises
    ------
    RunFailed
        If a trial ended with an error.
    """
    grid, pretrain = config.tried(), config.part(PretrainConfig)
    num_trials = math.prod(map(len, grid.values()))
    trial = ray.tune.with_parameters(
        _trial,
        store=store.location,
        config=pretrain.to_dict(),
        searching=config.searching.to_dict(),
        probing=config.probing.to_dict(),
    )
    resources = {"GPU": 1.0} if size.gpus else {"CPU": 1.0}
    with console.progress("sweep", num_trials * config.training.epochs, "epochs") as progress:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trial, resources),
            param_space={name: ray.tune.grid_search(list(values)) for name, values in grid.items()},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=config.searching.trials_at_once or None),
            run_config=ray.tune.RunConfig(
                name=f"trials-{parent.run_id[:8]}",
                storage_path=folder.location,
                callbacks=[_TrialRecords(experiment, parent, progress)],
                verbose=0,
            ),
        )
        results = tuner.fit()
    errors = [result.error for result in results if result.error]
    if errors:
        raise RunFailed(f"{len(errors)} of {num_trials} trials failed, the first with: {failure_of(errors[0])}")
    return _ranked(results)


def _ranked(results: ray.tune.ResultGrid) -> list[Trial]:
    trials = []
    for result in results:
        metrics, options = result.metrics, result.config
        assert metrics is not None
        assert options is not None
        monitor = next(name for name in _MONITORS if name in metrics)
        trials.append(Trial(dict(options), monitor, metrics[monitor], metrics["loss"]))
    # Ties are ordered by their options, so that the order does not depend on which trial ended first.
    return sorted(trials, key=lambda trial: (-trial.value, str(trial.options)))


def _trial(values: dict[str, Any], **plain: Any) -> None:
    """One trial, in a process of its own; all arguments are plain data, as Ray sends them."""
    with failing_as("trial"):
        _train(values, **plain)


def _train(
    values: dict[str, Any],
    *,
    store: str,
    config: dict[str, Any],
    searching: dict[str, Any],
    probing: dict[str, Any],
) -> None:
    """Train with one setting to the end."""
    import torch

    from scale_ray.clip_sets import ResidentClips
    from scale_ray.pretraining import Metrics, Trainer, fit
    from scale_ray.probes import validation_monitor

    setting = PretrainConfig.from_dict(config).with_values(values)
    features_store = FeatureStore(store)
    validation_share = Searching.from_dict(searching).validation_share
    parts = validation_split(features_store, validation_share, setting.splits.split)
    train, validation = (clips.read() for clips in parts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(
        ResidentClips.from_clips(train, device),
        setting,
        device=device,
        held_out=ResidentClips.from_clips(validation, device),
    )

    class Reports:
        """Reports the metrics from time to time, and the score on the validation videos at the end."""

        reported_s = time.monotonic()

        def after_step(self, trainer: Trainer, values: dict[str, torch.Tensor]) -> None: ...

        def after_epoch(self, trainer: Trainer, metrics: Metrics) -> None:
            if trainer.finished:
                name, value = validation_monitor(
                    trainer.model, train, validation, features_store.labels(), Probing.from_dict(probing)
                )
                ray.tune.report({**metrics, name: value})
            elif time.monotonic() - self.reported_s > _REPORT_S:
                self.reported_s = time.monotonic()
                ray.tune.report(dict(metrics))

    fit(trainer, Reports())


class _TrialRecords(ray.tune.Callback):  # type: ignore[misc]  # Ray is not typed for mypy here
    """Records each trial as a child of one MLflow run, from the driver, so that a failed trial ends its run, too."""

    def __init__(self, experiment: Experiment, parent: RunRecord, progress: Progress) -> None:
        self._experiment, self._parent, self._progress = experiment, parent, progress
        self._records: dict[str, RunRecord] = {}
        self._epochs: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Ray saves its callbacks for a resumption, which there is not; a connection could not be saved.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in trial.config.items())
        # Nothing here may wait for MLflow or fail with it: Ray Tune calls this between the trials' reports.
        self._records[trial.trial_id] = self._experiment.start_later(name, trial.config, parent=self._parent)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._epochs[trial.trial_id] = int(result["epoch"])
        values = {name: result[name] for name in _LOGGED if name in result}
        self._records[trial.trial_id].metrics(values, int(result["epoch"]))
        self._progress.to(sum(self._epochs.values()), f"loss {result['loss']:.3f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._records[trial.trial_id].end()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id in self._records:
            self._records[trial.trial_id].end(failed=True)
