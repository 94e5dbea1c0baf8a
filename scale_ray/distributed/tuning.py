"""A sweep on Ray Tune: which trial starts next, which ones are stopped, and what is recorded of each.

Tune starts, places and repeats the trials. What has been done is in the sweep's own small files (`search.TrialResults`)
and in MLflow, both written by the driver alone when a trial ends; Tune's own files are never read.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from scale_ray.config import SweepConfig, lowest_and_highest, setting_name
from scale_ray.console import Console, Progress
from scale_ray.distributed.failures import trial_failure
from scale_ray.distributed.trials import OBJECTIVE, SEED, TrialProcess, fold_of_seed
from scale_ray.errors import RunFailed, UserError
from scale_ray.files.locations import join
from scale_ray.probes import in_markdown
from scale_ray.search import FAILED, FINISHED, STOPPED, Setting, TrialResult, TrialResults, best_so_far, key_of
from scale_ray.tracking import Experiment, RunRecord

# Of what a trial reports, what is no metric of its training.
_NO_METRICS = ("finished", "blocks", "monitor", "began_s", "seconds", "epoch", OBJECTIVE, "done", "failure")
# ASHA keeps one trial of so many at each rung.
_REDUCTION = 3


class Settings(Protocol):
    """Where a search takes its settings from."""

    # Whether the next setting depends on the results so far.
    learns: bool

    def next(self) -> Setting | None:
        """The next setting to try; None if there are no more."""
        ...

    def report(self, setting: Setting, value: float | None) -> None:
        """The mean objective of a setting whose trials have all ended; None if all of them failed."""
        ...


class ListedSettings:
    """Settings that do not depend on results: a grid, or the first so many random ones."""

    learns = False

    def __init__(self, settings: Iterator[Setting], count: int | None = None) -> None:
        self._settings = islice(settings, count)

    def next(self) -> Setting | None:
        return next(self._settings, None)

    def report(self, setting: Setting, value: float | None) -> None: ...


@dataclass
class Plan:
    """What a sweep runs: its settings, the seeds of each, and what ends it.

    With `first_seed_decides`, a setting gets its other seeds only if its first one was not stopped early. No trial
    starts after `deadline_s` on the monotonic clock.
    """

    config: SweepConfig
    settings: Settings
    seeds: list[int]
    first_seed_decides: bool
    deadline_s: float | None = None


class TrialQueue(Searcher):  # type: ignore[misc]  # Ray is not typed for mypy here
    """Gives Tune the trials that are still to be run, one after the other."""

    def __init__(self, plan: Plan, results: TrialResults, at_once: int) -> None:
        super().__init__()
        self._plan, self._results, self._at_once = plan, results, at_once
        # Called with each result, of this command and of earlier ones.
        self.listener: Callable[[TrialResult], None] = lambda _: None
        self._waiting: deque[tuple[Setting, int]] = deque()
        self._left: dict[str, set[int]] = {}
        self._values: dict[str, list[float]] = {}
        self._no_more_settings = False
        self.running: dict[str, tuple[Setting, int]] = {}
        self.tried: list[Setting] = []

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves its searchers; the generator of random settings could not be saved.
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        while len(self.running) < self._at_once:
            following = self._following()
            if following is None:
                return None if self.running else Searcher.FINISHED
            setting, seed = following
            done = self._results.get(key_of(self._plan.config, setting, seed))
            if done is not None and done.state != FAILED:
                self._note(setting, seed, done)
                continue
            self.running[trial_id] = (setting, seed)
            return {**setting, SEED: seed}
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """`ended` is called instead, with the result as it was recorded."""

    def ended(self, trial_id: str, result: TrialResult) -> None:
        """A trial has ended, or has failed."""
        setting, seed = self.running.pop(trial_id)
        self._note(setting, seed, result)

    def save(self, checkpoint_path: str) -> None:
        """Tune saves its searchers; this one starts from the files of the trials instead."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep continues from the files of its trials")

    def _following(self) -> tuple[Setting, int] | None:
        # All settings with one seed before any with two: whenever the search ends, it has seen most of them. A search
        # that learns needs the means first.
        if self._waiting and (self._plan.settings.learns or self._no_more_settings):
            return self._waiting.popleft()
        over = self._plan.deadline_s is not None and time.monotonic() > self._plan.deadline_s
        setting = None if over or self._no_more_settings else self._plan.settings.next()
        if over:
            self._waiting.clear()
            return None
        if setting is None:
            self._no_more_settings = True
            return self._waiting.popleft() if self._waiting else None
        self.tried.append(setting)
        first, *others = self._plan.seeds
        key = repr(setting)
        self._left[key], self._values[key] = {first}, []
        if not self._plan.first_seed_decides:
            self._continue_with(setting, others)
        return setting, first

    def _continue_with(self, setting: Setting, seeds: list[int]) -> None:
        self._left[repr(setting)] |= set(seeds)
        self._waiting.extend((setting, seed) for seed in seeds)

    def _note(self, setting: Setting, seed: int, result: TrialResult) -> None:
        key = repr(setting)
        first, *others = self._plan.seeds
        if self._plan.first_seed_decides and seed == first and result.state == FINISHED:
            self._continue_with(setting, others)
        self._left[key].discard(seed)
        if result.state != FAILED:
            self._values[key].append(result.value)
        self.listener(result)
        if not self._left[key]:
            values = self._values[key]
            self._plan.settings.report(setting, sum(values) / len(values) if values else None)


class TrialRecords(ray.tune.Callback):  # type: ignore[misc]
    """Records the trials: curves in MLflow while they run, and their result in MLflow and in a file when they end."""

    def __init__(
        self,
        queue: TrialQueue,
        job: Mapping[str, Any],
        results: TrialResults,
        config: SweepConfig,
        experiment: Experiment,
        parent: RunRecord,
        progress: Progress,
        console: Console,
    ) -> None:
        self._queue, self._job, self._results, self._config = queue, job, results, config
        self._experiment, self._parent, self._progress, self._console = experiment, parent, progress, console
        self.failure: Exception | None = None
        self._records: dict[str, RunRecord] = {}
        self._curves: dict[str, list[list[float]]] = {}
        self._ended: list[TrialResult] = []
        queue.listener = self._count

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves its callbacks; a connection could not be saved.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._curves[trial.trial_id] = []
        if trial.trial_id not in self._records:  # it has one if this is another attempt
            # Nothing here may wait for MLflow or fail with it: Tune calls this between the trials' reports.
            self._records[trial.trial_id] = self._experiment.start_later(
                trial_name(trial.config), trial.config, parent=self._parent
            )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "failure" in result:
            return
        epoch = int(result["epoch"])
        self._curves[trial.trial_id].append([epoch, result[OBJECTIVE]])
        values = {**_metrics(result), f"validation_{result['monitor']}": result[OBJECTIVE]}
        self._records[trial.trial_id].metrics(values, epoch)
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        if "failure" in last or OBJECTIVE not in last:
            self._end(trial, FAILED, last, last.get("failure", "it ended without a result"))
        else:
            self._end(trial, FINISHED if last["finished"] else STOPPED, last)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # The text, as the file beside it would have to be unpickled.
        with open(trial.error_file, encoding="utf-8", errors="replace") as file:
            self._end(trial, FAILED, trial.last_result or {}, trial_failure(file.read()))

    def _end(self, trial: Any, state: str, last: Mapping[str, Any], reason: str | None = None) -> None:
        setting, seed = self._queue.running[trial.trial_id]
        failed = state == FAILED
        record = self._records.get(trial.trial_id) or self._experiment.start_later(
            trial_name(trial.config), trial.config, parent=self._parent
        )
        result = TrialResult(
            setting=setting,
            seed=seed,
            fold=fold_of_seed(seed, self._job),
            state=state,
            monitor="" if failed else last["monitor"],
            blocks=[] if failed else last["blocks"],
            curve=self._curves.get(trial.trial_id, []),
            metrics={} if failed else _metrics(last),
            epochs=int(last.get("epoch", 0)),
            seconds=float(last.get("seconds", 0.0)),
            began_s=float(last.get("began_s", 0.0)),
            reason=reason,
        )
        try:
            self._results.write(key_of(self._config, setting, seed), result)
        except (UserError, RunFailed) as error:  # the disk is full: no other result could be written
            self.failure = self.failure or error
        record_end(record, result)
        if failed:
            self._console.say(f"trial {trial_name(trial.config)} failed: {reason}")
        self._queue.ended(trial.trial_id, result)

    def _count(self, result: TrialResult) -> None:
        self._ended.append(result)
        self._show()

    def _show(self) -> None:
        states = [result.state for result in self._ended]
        # Those that wait for room are in the queue's hands, too, but have no curve yet.
        parts = [f"{sum(trial_id in self._curves for trial_id in self._queue.running)} running"]
        parts += [f"{states.count(state)} {state}" for state in (STOPPED, FAILED) if state in states]
        if best := best_so_far(self._ended):
            parts.append(f"best {best[1]:.3f} ({setting_name(best[0])})")
        self._progress.to(len(self._ended), ", ".join(parts))


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of the training among what a trial has reported, without those of Tune."""
    trainings = ("loss", "top1", "learning_rate", "per_s", "memory_mib", "gradient_norm", "train_seconds")
    return {
        name: float(value)
        for name, value in result.items()
        if name not in _NO_METRICS and isinstance(value, int | float) and name.endswith(trainings)
    }


def trial_name(config: Mapping[str, Any]) -> str:
    """The name of a trial in MLflow and in messages: `mask_ratio 0.25, set_size 8, seed 0`."""
    return setting_name(config)


def record_end(record: RunRecord, result: TrialResult, ended_s: float | None = None) -> None:
    """Record in MLflow how a trial ended, at this Unix time, by default now."""
    values = {"seconds": result.seconds, "epochs": result.epochs}
    if result.state != FAILED:
        values["objective"] = result.value
    # Of step 0, as MLflow's page draws bars of such metrics to compare trials; the curve is another metric.
    record.metrics(values)
    record.tags({"state": result.state, **({"reason": result.reason} if result.reason else {})})
    if result.state != FINISHED:  # MLflow has no state of its own for trials that were stopped early
        because = f": {result.reason}" if result.reason else ""
        record.describe(in_markdown(f"{result.state} after {result.epochs} epochs{because}"))
    record.end(failed=result.state == FAILED, ended_s=ended_s)


def record_earlier(experiment: Experiment, parent: RunRecord, result: TrialResult) -> None:
    """Record a trial of an earlier attempt in MLflow, from its file, with the times that it had."""
    options = {**result.setting, SEED: result.seed}
    began_s: float | None = result.began_s
    ended_s: float | None = result.began_s + result.seconds
    # A trial that failed before it began has no times; those of a damaged file could be beyond what MLflow takes.
    if not 0 < result.began_s <= result.began_s + result.seconds <= time.time():
        began_s = ended_s = None
    record = experiment.start_later(trial_name(options), options, parent=parent, began_s=began_s)
    for epoch, value in result.curve:
        record.metrics({f"validation_{result.monitor}": value}, int(epoch))
    record.metrics(result.metrics, result.epochs)
    record_end(record, result, ended_s)


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
                ray.tune.PlacementGroupFactory([dict(job["resources"])] * job["num_workers"]),
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
                failure_config=ray.tune.FailureConfig(max_failures=plan.config.training.max_restarts),
                verbose=0,
            ),
        )
        grid = tuner.fit()
    if records.failure is not None:
        raise records.failure
    return grid, queue.tried


class _Broken(ray.tune.Stopper):  # type: ignore[misc]
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
