"""What is recorded of each trial of a sweep, by the driver alone: a small file, and a run in MLflow."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import ray.tune

from scale_ray.config import SweepConfig, setting_name
from scale_ray.console import Console, Progress
from scale_ray.distributed.failures import trial_failure
from scale_ray.distributed.trial_queue import TrialQueue
from scale_ray.distributed.trials import OBJECTIVE, SEED, fold_of_seed
from scale_ray.errors import RunFailed, UserError, redacted
from scale_ray.probes import in_markdown
from scale_ray.search import FAILED, FINISHED, STOPPED, TrialResult, TrialResults, best_so_far, key_of
from scale_ray.tracking import Experiment, RunRecord

# How the metrics of the training are called, among all that a trial reports.
_TRAINING_METRICS = ("loss", "top1", "learning_rate", "per_s", "memory_mib", "gradient_norm", "train_seconds")


class TrialRecords(ray.tune.Callback):  # type: ignore[misc]  # Ray is not typed for mypy here
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
        # By the key of a trial: how often it has failed, and its MLflow run if it is to be repeated.
        self._failures: Counter[str] = Counter()
        self._to_repeat: dict[str, RunRecord] = {}
        self._curves: dict[str, list[list[float]]] = {}
        self._ended: list[TrialResult] = []
        queue.listener = self._count

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves its callbacks; a connection could not be saved.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._curves[trial.trial_id] = []
        # Nothing here may wait for MLflow or fail with it: Tune calls this between the trials' reports.
        key = self._key(trial)
        earlier = self._to_repeat.pop(key) if key in self._to_repeat else None
        self._records[trial.trial_id] = earlier or self._new_record(trial)

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
            reason = trial_failure(file.read())
        key = self._key(trial)
        self._failures[key] += 1
        if self._failures[key] > self._config.training.max_restarts:
            self._end(trial, FAILED, trial.last_result or {}, reason)
            return
        self._console.say(f"trial {setting_name(trial.config)} is repeated: {reason}")
        if trial.trial_id in self._records:
            self._to_repeat[key] = self._records.pop(trial.trial_id)
        self._queue.again(trial.trial_id)

    def _key(self, trial: Any) -> str:
        return key_of(self._config, *self._queue.running[trial.trial_id])

    def _new_record(self, trial: Any) -> RunRecord:
        return self._experiment.start_later(setting_name(trial.config), trial.config, parent=self._parent)

    def _end(self, trial: Any, state: str, last: Mapping[str, Any], reason: str | None = None) -> None:
        setting, seed = self._queue.running[trial.trial_id]
        failed = state == FAILED
        record = self._records.get(trial.trial_id) or self._new_record(trial)
        if self.failure is not None:
            # The sweep is ending: Tune stops the trials in the middle, which is no result of theirs.
            record.end(failed=True)
            self._queue.again(trial.trial_id)
            return
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
            self._results.write(self._key(trial), result)
        except (UserError, RunFailed) as error:  # the disk is full: no other result could be written
            self.failure = self.failure or error
        record_end(record, result)
        if failed:
            self._console.say(f"trial {setting_name(trial.config)} failed: {reason}")
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
    return {name: float(value) for name, value in result.items() if name.endswith(_TRAINING_METRICS)}


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


def record_missing(
    experiment: Experiment,
    parent: RunRecord,
    results: Iterable[TrialResult],
    complete: Iterable[tuple[Mapping[str, str], str]],
) -> None:
    """Record the trials of earlier commands that MLflow does not have; it has those of these options and states."""
    known = {(frozenset(options.items()), state) for options, state in complete}
    for result in results:
        options = {**result.setting, SEED: result.seed}
        as_text = {name: str(value) for name, value in redacted(options).items()}
        if (frozenset(as_text.items()), result.state) not in known:
            _record_earlier(experiment, parent, result, options)


def _record_earlier(experiment: Experiment, parent: RunRecord, result: TrialResult, options: Mapping[str, Any]) -> None:
    """Record a trial of an earlier command in MLflow, from its file, with the times that it had."""
    began_s: float | None = result.began_s
    ended_s: float | None = result.began_s + result.seconds
    # A trial that failed before it began has no times; those of a damaged file could be beyond what MLflow takes.
    if not 0 < result.began_s <= result.began_s + result.seconds <= time.time():
        began_s = ended_s = None
    record = experiment.start_later(setting_name(options), options, parent=parent, began_s=began_s)
    for epoch, value in result.curve:
        record.metrics({f"validation_{result.monitor}": value}, int(epoch))
    record.metrics(result.metrics, result.epochs)
    record_end(record, result, ended_s)
