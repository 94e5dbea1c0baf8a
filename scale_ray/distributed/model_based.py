"""Model-based search by Optuna, through Ray Tune; its study is a database in the sweep's folder."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import ray.tune
from ray.tune.search.optuna import OptunaSearch

from scale_ray.config import Domain, Range, SweepConfig
from scale_ray.files.failures import explained
from scale_ray.files.locations import is_uri, join
from scale_ray.hashing import uniform_hash
from scale_ray.search import Setting

_METRIC = "objective"
# The search ends if it proposes so many settings in a row that have been tried: the space has been searched.
_MAX_REPEATED = 50


class OptunaSettings:
    """Settings that Optuna proposes, learning from the means of those before.

    The study is `optuna.db` in the folder of the sweep, for optuna-dashboard; it is in memory if the folder is not on
    local disk. It is written anew each time and never read: an interrupted sweep continues with its `earlier` settings,
    known from the files of their trials.
    """

    learns = True

    def __init__(self, folder: str, name: str, config: SweepConfig, earlier: Sequence[Setting]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger(OptunaSearch.__module__).setLevel(logging.ERROR)
        self._names, self._left = list(config.space), config.searching.trials
        self._earlier = [setting for setting in earlier if _is_in(setting, config.space)]
        # Another one after each interruption: the same would propose the same settings again.
        seed = int(uniform_hash(f"optuna\0{config.searching.search_seed}\0{len(self._earlier)}") * 2**31)
        self._search = OptunaSearch(
            space=OptunaSearch.convert_search_space({name: _domain(d) for name, d in config.space.items()}),
            metric=_METRIC,
            mode="max",
            study_name=name,
            storage=None if is_uri(folder) else _new_database(folder),
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
        self._numbers = itertools.count()
        self._proposals: dict[str, str] = {}
        self._values: dict[str, float | None] = {}

    def next(self) -> Setting | None:
        if not self._left:
            return None
        self._left -= 1
        if self._earlier:
            return self._earlier.pop(0)
        for _ in range(_MAX_REPEATED):
            proposal = str(next(self._numbers))
            proposed = self._search.suggest(proposal)
            setting = {name: proposed[name] for name in self._names}
            key = json.dumps(setting)
            if key not in self._proposals and key not in self._values:
                self._proposals[key] = proposal
                return setting
            self._search.on_trial_complete(proposal, _result(self._values.get(key)))
        return None

    def report(self, setting: Setting, value: float | None) -> None:
        key = json.dumps(setting)
        self._values[key] = value
        if key in self._proposals:
            self._search.on_trial_complete(self._proposals[key], _result(value), error=value is None)
        elif value is not None:
            self._search.add_evaluated_point(setting, value)


def _result(value: float | None) -> dict[str, Any] | None:
    return None if value is None else {_METRIC: value}


def _new_database(folder: str) -> optuna.storages.RDBStorage:
    path = Path(join(folder, "optuna.db"))
    with explained(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.unlink()
    return optuna.storages.RDBStorage(f"sqlite:///{path}")


def _domain(domain: Domain) -> Any:
    if not isinstance(domain, Range):
        return ray.tune.choice(list(domain))
    if domain.is_whole:
        draw = ray.tune.lograndint if domain.log else ray.tune.randint
        return draw(int(domain.low), int(domain.high) + 1)
    return (ray.tune.loguniform if domain.log else ray.tune.uniform)(domain.low, domain.high)


def _is_in(setting: Mapping[str, Any], space: Mapping[str, Domain]) -> bool:
    if list(setting) != list(space):
        return False
    return all(
        domain.low <= setting[name] <= domain.high if isinstance(domain, Range) else setting[name] in domain
        for name, domain in space.items()
    )
