"""The figures of `benchmarks/sweeps.py`: overheads of trials by slot, memory by trial, what early stopping saves."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from scale_ray.search import FINISHED, STOPPED, TrialResult

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def sweeps(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sweeps")


def trial(began_s: float, seconds: float, train_s: float = 1.0, **values) -> TrialResult:
    options = {"setting": {"number": began_s}, "seed": 0, "state": FINISHED, "blocks": [[1, 2]], **values}
    return TrialResult(began_s=began_s, seconds=seconds, metrics={"train_seconds": train_s}, **options)


def test_a_trial_follows_the_one_that_freed_its_slot_last(sweeps):
    first, second, third, fourth = trial(10, 2), trial(11, 8), trial(12.5, 3), trial(20, 2)
    assert sweeps.successors([fourth, second, third, first]) == [(first, third), (second, fourth)]


def test_the_overhead_reaches_from_the_end_of_the_trial_before_to_the_own_end(sweeps):
    figures = sweeps.overheads([trial(10, 2), trial(10, 90), trial(12.5, 3, train_s=2.75), trial(16, 2, train_s=1.5)])
    assert figures["overhead_of_each_s"] == [0.75, 1.0]
    assert figures["of_it_before_the_trial_began_s"]["max"] == 0.5
    assert figures["of_it_within_the_trial_s"]["max"] == 0.5


def test_three_trials_at_a_time_are_no_sweep_of_two_slots(sweeps):
    with pytest.raises(AssertionError, match="slots"):
        sweeps.overheads([trial(10, 5), trial(11, 5), trial(12, 5)])


def test_memory_that_grows_with_the_trials_is_reported(sweeps):
    samples = [sweeps.Sample(number, 300.0 + number, [500.0, 500.0], 100.0) for number in range(101)]
    starting = [sweeps.Sample(0, 10_000.0, [], 0.0)]
    figures = sweeps.memory(starting + samples)
    assert figures["driver_mib"] == {
        "trial 10": 310,
        "trial 50": 350,
        "trial 100": 399,
        "max": 400,
        "growth_per_trial": 1.0,
    }
    assert figures["trial_processes_mib"]["growth_per_trial"] == 0


def test_what_early_stopping_saves_is_a_fraction_of_the_full_search(sweeps):
    def sweep(trials: list[TrialResult]):
        return sweeps.Sweep("command", 1.0, 0.0, 0.0, trials, Path("folder"), [])

    right = [[8, 10]], [[6, 10]], [[9, 10]]
    full = [trial(number, 10, epochs=20, blocks=blocks) for number, blocks in enumerate(right)]
    states = (FINISHED, STOPPED, STOPPED)
    stopped = [
        trial(
            number, 10 if state == FINISHED else 2.5, epochs=20 if state == FINISHED else 5, blocks=blocks, state=state
        )
        for number, (blocks, state) in enumerate(zip(right, states, strict=True))
    ]
    figures = sweeps.stopping_figures(sweep(full), sweep(stopped))
    assert figures["saved"] == {"trial_seconds": 0.5, "epochs": 0.5}
    assert figures["rank_of_the_choice_of_asha"] == 2, "it stopped the best one"
    assert figures["none"]["best_objective"] == 0.9
    assert figures["asha"]["best_objective"] == 0.8
