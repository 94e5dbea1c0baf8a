"""A sweep on Ray Tune, which starts, places, repeats and stops the trials.

What has been done is in the sweep's own small files (`search.TrialResults`) and in MLflow; Tune's own files are never
read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from scale_ray.config import lowest_and_highest, parse_labels
from scale_ray.console import Console
from scale_ray.distributed.trial_queue import Plan, TrialQueue
from scale_ray.distributed.trial_records import TrialRecords
from scale_ray.distributed.trials import OBJECTIVE, SEED, TrialProcess
from scale_ray.files.locations import join
from scale_ray.search import Setting, TrialResults
from scale_ray.tracking import Experiment, RunRecord

# ASHA keeps one trial of so many at each rung.
_REDUCTION = 3


def run_trials(
    folder: str,
    job: Mapping[str, Any],
    plan: Plan,
    results: TrialResults,
    slots: int,
    num_trials: int,
    experiment: Experiment,
    parent: RunRecord,
    console: Console,
) -> tuple[ray.tune.ResultGrid, list[Setting]]:
    """Run all trials of a plan that have no result yet; returns those of this call, and all settings of the plan.

    `job` is what every trial gets (`TrialWorker`), `slots` the number of trials that the cluster has room for, and
    `num_trials` the expected number of trials, for the progress. A trial that fails, or whose process or node dies, is
    repeated up to `max_restarts` times, and then recorded as failed.
    """
    # As many trials wait as can run, so that whenever one ends, its process is given to the next.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)
    limit = plan.config.searching.trials_at_once or 2 * slots
    # Ctrl-C ends the command; Tune would only end the search.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Tune saves its state, which is never read, at the end only.
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(10**6)
    queue = TrialQueue(plan, results, limit)
    with console.progress("sweep", num_trials, "trials") as progress:
        records = TrialRecords(queue, job, results, plan.config, experiment, parent, progress, console)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(
                ray.tune.with_parameters(TrialProcess, job=dict(job)),
                _places(job["resources"], job["num_workers"], parse_labels(plan.config.cluster.worker_labels)),
            ),
            tune_config=ray.tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max",
                search_alg=queue,
                scheduler=_scheduler(plan),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_tune_name,
                trial_dirname_creator=_tune_name,
            ),
            run_config=ray.tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=join(folder, "tune"),
                callbacks=[records],
                stop=_Broken(records),
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
                # Tune would not repeat a trial whose process dies before its first step: the queue repeats them all.
                failure_config=ray.tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        grid = tuner.fit()
    if records.failure is not None:
        raise records.failure
    return grid, queue.tried


def _places(resources: Mapping[str, float], num_workers: int, labels: dict[str, str]) -> ray.tune.PlacementGroupFactory:
    """What Ray reserves for the workers of a trial, on nodes with these labels."""
    selected = {"bundle_label_selector": [labels] * num_workers} if labels else {}
    return ray.tune.PlacementGroupFactory([dict(resources)] * num_workers, **selected)


class _Broken(ray.tune.Stopper):  # type: ignore[misc]  # Ray is not typed for mypy here
    """Ends the sweep when a result could not be written."""

    def __init__(self, records: TrialRecords) -> None:
        self._records = records

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._records.failure is not None


def _tune_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _scheduler(plan: Plan) -> TrialScheduler:
    searching, training = plan.config.searching, plan.config.training
    if not plan.first_seed_decides:
        return FIFOScheduler()
    max_epochs = int(max(lowest_and_highest(plan.config.space.get("training.epochs", (training.epochs,)))))
    grace = min(searching.grace_epochs or max(max_epochs // 10, 1), max_epochs)
    judged: dict[str, Any] = {"time_attr": "epoch", "metric": OBJECTIVE, "mode": "max", "grace_period": grace}
    if searching.early_stopping == "median":
        # It would pause trials while there are few to compare with, and a paused trial would lose what it has trained.
        never = {"min_time_slice": 10**9}
        return FirstSeedScheduler(MedianStoppingRule(**judged, **never, min_samples_required=_REDUCTION), plan.seeds[0])
    return FirstSeedScheduler(ASHAScheduler(**judged, max_t=max_epochs, reduction_factor=_REDUCTION), plan.seeds[0])


class FirstSeedScheduler(FIFOScheduler):  # type: ignore[misc]
    """Lets another scheduler judge the trials with the first seed; the others run to the end."""

    def __init__(self, judge: TrialScheduler, seed: int) -> None:
        super().__init__()
        self._judge, self._seed = judge, seed

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def _is_judged(self, trial: Any) -> bool:
        return bool(trial.config[SEED] == self._seed)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self._is_judged(trial):
            self._judge.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not self._is_judged(trial):
            return str(TrialScheduler.CONTINUE)
        return str(self._judge.on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self._is_judged(trial):
            self._judge.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        if self._is_judged(trial):
            self._judge.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        if self._is_judged(trial):
            self._judge.on_trial_remove(tune_controller, trial)
