"""The queue of trials: what starts next, without Ray."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.search import Searcher

from scale_ray.config import SweepConfig
from scale_ray.console import Console, Progress
from scale_ray.distributed.model_based import OptunaSettings
from scale_ray.distributed.trial_queue import ListedSettings, Plan, TrialQueue
from scale_ray.distributed.trial_records import TrialRecords
from scale_ray.errors import RunFailed
from scale_ray.search import (
    FAILED,
    FINISHED,
    STOPPED,
    TrialResult,
    TrialResults,
    grid_settings,
    key_of,
    random_settings,
)

CONFIG = SweepConfig().replaced(mask_ratio=(0.1, 0.2, 0.3), set_size=4)
SETTINGS = list(grid_settings(CONFIG.space))


def plan(**options: Any) -> Plan:
    return Plan(CONFIG, ListedSettings(iter(SETTINGS)), **{"seeds": [0, 1], "first_seed_decides": False, **options})


def result(setting: dict[str, Any], seed: int, state: str = FINISHED, right: int = 5) -> TrialResult:
    return TrialResult(
        setting, seed, state, fold=seed, monitor="knn_top1", blocks=[[right, 10]] if state != FAILED else []
    )


def all_suggested(queue: TrialQueue, state_of: Any = lambda setting, seed: FINISHED) -> list[tuple[float, int]]:
    """Run the queue to its end, one trial at a time: the mask ratio and the seed of each trial."""
    found = []
    for number in range(100):
        trial = queue.suggest(str(number))
        if trial == Searcher.FINISHED:
            return found
        assert isinstance(trial, dict)
        setting = {name: value for name, value in trial.items() if name != "seed"}
        found.append((setting["sets.mask_ratio"], trial["seed"]))
        queue.ended(str(number), result(setting, trial["seed"], state_of(setting, trial["seed"])))
    raise AssertionError("the queue does not end")


def test_every_setting_has_one_seed_before_any_has_two(tmp_path):
    queue = TrialQueue(plan(), TrialResults(str(tmp_path)), 1)
    assert all_suggested(queue) == [(0.1, 0), (0.2, 0), (0.3, 0), (0.1, 1), (0.2, 1), (0.3, 1)]
    assert queue.tried == SETTINGS


def test_what_has_a_result_is_not_run_again_and_what_failed_is(tmp_path):
    results = TrialResults(str(tmp_path))
    results.write(key_of(CONFIG, SETTINGS[1], 0), result(SETTINGS[1], 0))
    results.write(key_of(CONFIG, SETTINGS[2], 1), result(SETTINGS[2], 1, FAILED))
    heard: list[TrialResult] = []
    queue = TrialQueue(plan(), results, 1)
    queue.listener = heard.append
    assert all_suggested(queue) == [(0.1, 0), (0.3, 0), (0.1, 1), (0.2, 1), (0.3, 1)]
    assert len(heard) == 6, "earlier results count, too"


def test_a_setting_that_was_stopped_or_failed_has_no_other_seeds(tmp_path):
    queue = TrialQueue(plan(first_seed_decides=True), TrialResults(str(tmp_path)), 1)
    states = {0.1: STOPPED, 0.2: FINISHED, 0.3: FAILED}
    found = all_suggested(queue, lambda setting, seed: states[setting["sets.mask_ratio"]])
    assert found == [(0.1, 0), (0.2, 0), (0.3, 0), (0.2, 1)]


def test_no_more_trials_than_allowed_run_at_once_and_none_after_the_deadline(tmp_path):
    queue = TrialQueue(plan(), TrialResults(str(tmp_path)), 2)
    assert queue.suggest("a")
    assert queue.suggest("b")
    assert queue.suggest("c") is None
    late = TrialQueue(plan(deadline_s=time.monotonic() - 1), TrialResults(str(tmp_path)), 2)
    assert late.suggest("a") == Searcher.FINISHED


def test_a_trial_that_is_repeated_comes_before_all_others(tmp_path):
    queue = TrialQueue(plan(), TrialResults(str(tmp_path)), 1)
    first = queue.suggest("a")
    queue.again("a")
    assert queue.suggest("b") == first
    assert queue.tried == SETTINGS[:1]


def optuna_config(**options: Any) -> SweepConfig:
    return SweepConfig().replaced(
        **{"mask_ratio": 0.25, "set_size": (2, 4, 8), "learning_rate": "log:1e-4..1e-2", "layers": "1..4", **options}
    )


def test_optuna_proposes_different_settings_of_the_space_and_finds_the_better_part(tmp_path):
    config = optuna_config(trials=25)
    settings = OptunaSettings(str(tmp_path), "run", config, [])
    tried = []
    while (setting := settings.next()) is not None:
        tried.append(setting)
        settings.report(setting, setting["sets.set_size"] / 10 if setting["aggregator.layers"] > 1 else None)
    assert len({repr(setting) for setting in tried}) == 25
    assert all(list(setting) == list(config.space) for setting in tried)
    assert {setting["sets.set_size"] for setting in tried} == {2, 4, 8}
    assert all(1e-4 <= setting["training.learning_rate"] <= 1e-2 for setting in tried)
    late = [setting["sets.set_size"] for setting in tried[12:]]
    assert late.count(8) > len(late) / 2, "most of the later ones have the best value"


def test_optuna_continues_with_the_earlier_settings_and_writes_its_database_anew(tmp_path):
    import optuna

    config = optuna_config(trials=4)
    earlier = [
        {"sets.set_size": 4, "aggregator.layers": 2, "training.learning_rate": 1e-3},
        {"sets.set_size": 5, "aggregator.layers": 2, "training.learning_rate": 1e-3},
        {"sets.set_size": 8},
    ]
    (tmp_path / "optuna.db").write_bytes(b"not a database")
    settings = OptunaSettings(str(tmp_path), "run", config, earlier)
    assert settings.next() == earlier[0], "the others are not of this space"
    settings.report(earlier[0], 0.5)
    rest = [settings.next() for _ in range(3)]
    assert None not in rest
    assert earlier[0] not in rest
    assert settings.next() is None
    for setting in rest:
        settings.report(setting, 0.25)
    study = optuna.load_study(study_name="run", storage=f"sqlite:///{tmp_path}/optuna.db")
    assert [trial.value for trial in study.trials] == [0.5, 0.25, 0.25, 0.25]
    assert study.best_params["sets.set_size"] == 4


def test_a_space_that_has_been_searched_ends_an_optuna_search(tmp_path):
    config = SweepConfig().replaced(mask_ratio=(0.1, 0.2), set_size=4, trials=10)
    settings = OptunaSettings(str(tmp_path), "run", config, [])
    tried = []
    while (setting := settings.next()) is not None:
        tried.append(setting["sets.mask_ratio"])
        settings.report(setting, 0.5)
    assert sorted(tried) == [0.1, 0.2]


@pytest.mark.parametrize("state", [FINISHED, FAILED])
def test_a_model_based_search_hears_the_mean_when_all_seeds_have_ended(tmp_path, state):
    heard: list[tuple[dict[str, Any], float | None]] = []

    class Learning(ListedSettings):
        learns = True

        def report(self, setting: dict[str, Any], value: float | None) -> None:
            heard.append((setting, value))

    queue = TrialQueue(replace(plan(), settings=Learning(iter(SETTINGS))), TrialResults(str(tmp_path)), 1)
    assert all_suggested(queue, lambda *_: state)[:3] == [(0.1, 0), (0.1, 1), (0.2, 0)]
    assert heard[0] == (SETTINGS[0], 0.5 if state == FINISHED else None)


@pytest.mark.parametrize("search", ["grid", "random", "optuna"])
def test_tune_can_save_the_queue_of_any_search(tmp_path, search):
    settings = {
        "grid": lambda: ListedSettings(grid_settings(CONFIG.space)),
        "random": lambda: ListedSettings(random_settings(CONFIG.space, 0), 20),
        "optuna": lambda: OptunaSettings(str(tmp_path), "sweep", CONFIG, []),
    }[search]()
    queue = TrialQueue(replace(plan(), settings=settings), TrialResults(str(tmp_path)), 2)
    assert queue.suggest("0") is not None
    assert cloudpickle.dumps(queue)


def test_trials_that_end_because_a_result_could_not_be_written_have_no_result(tmp_path):
    class Recorder:
        def __init__(self) -> None:
            self.ended: list[bool] = []

        def start_later(self, *_: Any, **__: Any) -> Recorder:
            return self

        def end(self, *, failed: bool = False, **_: Any) -> None:
            self.ended.append(failed)

    results, recorder = TrialResults(str(tmp_path)), Recorder()
    queue = TrialQueue(plan(), results, 2)
    job = {"first_seed": 0, "folds": 2}
    records = TrialRecords(
        queue, job, results, CONFIG, recorder, recorder, Progress("s", 6, "t", quiet=True), Console()
    )
    records.failure = RunFailed("the disk is full")
    config = queue.suggest("a")
    last = {"finished": False, "objective": 0.5, "monitor": "knn_top1", "blocks": [[1, 2]], "epoch": 3}
    records.on_trial_complete(0, [], SimpleNamespace(trial_id="a", config=config, last_result=last))
    assert results.all() == [], "a trial that was cut off is not one that was stopped early"
    assert recorder.ended == [True]
