"""Which trial of a sweep starts next: a searcher of Ray Tune that knows what has been done already."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from ray.tune.search import Searcher

from scale_ray.config import SweepConfig
from scale_ray.distributed.trials import SEED
from scale_ray.search import FAILED, FINISHED, Setting, TrialResult, TrialResults, key_of


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
        self._repeated: deque[tuple[Setting, int]] = deque()
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

    def again(self, trial_id: str) -> None:
        """A trial has failed, and is to be repeated."""
        self._repeated.append(self.running.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Tune saves its searchers; this one starts from the files of the trials instead."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep continues from the files of its trials")

    def _following(self) -> tuple[Setting, int] | None:
        if self._repeated:
            return self._repeated.popleft()
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
