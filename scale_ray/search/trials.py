"""The results of trials, each a small JSON file that is written when the trial has ended: what a sweep has done so far.

The files are all that a continued sweep reads; nothing that Ray Tune saves is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any

from scale_ray.console import shortened
from scale_ray.errors import UserError, redacted
from scale_ray.files.locations import atomic_write, files_in, join
from scale_ray.files.small_files import content_of, parsed_json
from scale_ray.search.settings import Setting

FINISHED, STOPPED, FAILED = "finished", "stopped early", "failed"

_KIND = "the result of a trial"
_READ_AT_ONCE = 16
_AMOUNTS = ("seed", "fold", "epochs", "seconds", "began_s")
# Damaged files can hold numbers that are too large for arithmetic; up to here a float is exact for whole numbers.
_MAX_NUMBER = 2**53
_TYPES = {
    "key": str,
    "setting": dict,
    "seed": int,
    "fold": int,
    "state": str,
    "monitor": str,
    "blocks": list,
    "curve": list,
    "metrics": dict,
    "epochs": int,
    "seconds": float | int,
    "began_s": float | int,
    "reason": str | None,
}


@dataclass(frozen=True)
class TrialResult:
    """One trial: a setting trained with one seed, and validated on the `fold` that belongs to the seed.

    `monitor` names the objective. `blocks` holds, per block of groups of the fold, how many of its videos were right,
    and how many there are; a bootstrap draws from them. `curve` holds pairs of epoch and objective, `metrics` the
    other metrics at the end. `seconds` is the time that the trial took, `began_s` when it began (Unix time).
    """

    setting: Setting
    seed: int
    state: str
    fold: int = 0
    monitor: str = ""
    blocks: list[list[int]] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    began_s: float = 0.0
    reason: str | None = None

    @property
    def value(self) -> float:
        """The objective, in [0, 1], higher is better; NaN if the trial failed."""
        videos = sum(block[1] for block in self.blocks)
        return sum(block[0] for block in self.blocks) / videos if videos else float("nan")


class TrialResults:
    """The results in a sweep's folder, by the key of their trial; links are not followed.

    Raises
    ------
    UserError
        On opening, if a file is damaged: the message names it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = join(folder, "trials")
        paths = [info.path for info in files_in(self._folder) if info.path.endswith(".json")]
        keys = [path.rpartition("/")[2].removesuffix(".json") for path in paths]
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            self._results = dict(zip(keys, threads.map(self._read, keys), strict=True))

    def __contains__(self, key: str) -> bool:
        """Whether this trial is done, so that it is not run again; a failed one is not."""
        return key in self._results and self._results[key].state != FAILED

    def done(self) -> set[str]:
        """The keys of the trials that need not be run again."""
        return {key for key in self._results if key in self}

    def all(self) -> list[TrialResult]:
        """The results of all trials, also of those that failed."""
        return list(self._results.values())

    def get(self, key: str) -> TrialResult | None:
        return self._results.get(key)

    def write(self, key: str, result: TrialResult) -> None:
        """Save the result of a trial; it takes the place of an earlier one.

        Numbers that are not finite, such as the loss of a training that diverged, are written as null and read as NaN.

        Raises
        ------
        UserError
            If the file could not be read again.
        """
        content = json.dumps(_plain(redacted({"key": key, **asdict(result)})), indent=1, allow_nan=False).encode()
        written = _result_in(content, self._path(key), key)
        with atomic_write(self._path(key)) as file:
            file.write(content)
        self._results[key] = written

    def _read(self, key: str) -> TrialResult:
        return _result_in(content_of(self._path(key), _KIND), self._path(key), key)

    def _path(self, key: str) -> str:
        return join(self._folder, f"{key}.json")


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: numbers of NumPy are converted, and those that are not finite become None."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return value


def _result_in(content: bytes, path: str, key: str) -> TrialResult:
    """The result in the content of a file; damage of any kind is a UserError."""
    values: dict[str, Any] = parsed_json(content, path, _KIND, _TYPES)
    states = (FINISHED, STOPPED, FAILED)
    # What is checked, what was expected, the condition, and the parts that have to meet it.
    checks: list[tuple[str, str, Callable[[Any], bool], Iterable[Any]]] = [
        ("key", f"{key}, as the file is named", lambda found: found == key, [values["key"]]),
        ("state", f"one of {', '.join(states)}", lambda state: state in states, [values["state"]]),
        *(
            (name, "of at least 0", _is_amount, [values[name]])
            for name in ("seed", "fold", "epochs", "seconds", "began_s")
        ),
        ("setting", "of names and values", _is_choice, values["setting"].items()),
        ("blocks", "of [right, videos]", _is_block, values["blocks"]),
        ("blocks", "of at least one video", lambda blocks: blocks or values["state"] == FAILED, [values["blocks"]]),
        ("curve", "of [epoch, objective]", _is_point, values["curve"]),
        ("metrics", "of names and numbers", lambda item: _is_number_or_none(item[1]), values["metrics"].items()),
    ]
    for name, expected, holds, parts in checks:
        for part in parts:
            if not holds(part):
                raise UserError(f"{path}: expected {_KIND} with {name} {expected}, found {shortened(repr(part), 60)}")
    values["curve"] = [[epoch, _number_or_nan(objective)] for epoch, objective in values["curve"]]
    values["metrics"] = {name: _number_or_nan(metric) for name, metric in values["metrics"].items()}
    fields: dict[str, Any] = {name: values.get(name) for name in _TYPES if name != "key"}
    return TrialResult(**fields)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_amount(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= _MAX_NUMBER


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _is_block(value: Any) -> bool:
    return _is_pair(value) and all(map(_is_amount, value)) and value[0] <= value[1] and value[1] > 0


def _is_point(value: Any) -> bool:
    return _is_pair(value) and _is_amount(value[0]) and _is_number_or_none(value[1])


def _is_choice(item: tuple[str, Any]) -> bool:
    return isinstance(item[1], str) or _is_number_or_none(item[1])


def _number_or_nan(value: float | None) -> float:
    return math.nan if value is None else value
