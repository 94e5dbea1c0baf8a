"""The results of trials, each a small JSON file that is written when the trial has ended: what a sweep has done so far.

The files are all that a continued sweep reads; nothing that Ray Tune saves is used.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from scale_ray.errors import UserError, redacted
from scale_ray.files.locations import atomic_write, files_in, join
from scale_ray.files.small_files import check_types, read_json
from scale_ray.search.settings import Setting

FINISHED, STOPPED, FAILED = "finished", "stopped early", "failed"

_KIND = "the result of a trial"
_READ_AT_ONCE = 16
_TYPES = {
    "setting": dict,
    "seed": int,
    "state": str,
    "monitor": str,
    "blocks": list,
    "curve": list,
    "metrics": dict,
    "epochs": int,
    "seconds": float | int,
    "began_s": float | int,
    "reason": str | None,
    "mlflow_run": str,
}


@dataclass(frozen=True)
class TrialResult:
    """One trial: a setting trained with one seed, and validated on the fold that belongs to the seed.

    `monitor` names the objective. `blocks` holds, per block of groups of the fold, how many of its videos were right,
    and how many there are; a bootstrap draws from them. `curve` holds pairs of epoch and objective, `metrics` the
    other metrics at the end. `seconds` is the time that the trial took, `began_s` when it began (Unix time).
    """

    setting: Setting
    seed: int
    state: str
    monitor: str = ""
    blocks: list[list[int]] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    began_s: float = 0.0
    reason: str | None = None
    mlflow_run: str = ""

    @property
    def value(self) -> float:
        """The objective, in [0, 1], higher is better; NaN if the trial failed."""
        videos = sum(block[1] for block in self.blocks)
        return sum(block[0] for block in self.blocks) / videos if videos else float("nan")


class TrialResults:
    """The results in a sweep's folder, by the key of their trial.

    Raises
    ------
    UserError
        On opening, if a file is damaged: the message names it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = join(folder, "trials")
        paths = [info.path for info in files_in(self._folder) if info.path.endswith(".json")]
        names = [path.rpartition("/")[2] for path in paths]
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            results = threads.map(_read, (join(self._folder, name) for name in names))
            self._results = {name.removesuffix(".json"): result for name, result in zip(names, results, strict=True)}

    def __contains__(self, key: str) -> bool:
        """Whether this trial is done, so that it is not run again; one that failed is."""
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
        """Save the result of a trial; it takes the place of an earlier one."""
        with atomic_write(join(self._folder, f"{key}.json")) as file:
            file.write(json.dumps(redacted(asdict(result)), indent=1).encode())
        self._results[key] = result


def _read(path: str) -> TrialResult:
    values = read_json(path, _KIND, _TYPES)
    check_types(values["setting"], path, _KIND, dict.fromkeys(values["setting"], str | int | float | None))
    check_types(values["metrics"], path, _KIND, dict.fromkeys(values["metrics"], float | int))
    for name, expected in (("blocks", "[right, videos]"), ("curve", "[epoch, objective]")):
        if not all(_is_pair(pair) for pair in values[name]):
            raise UserError(f"{path}: expected {_KIND} with {name} as a list of {expected}, found another")
    if values["state"] not in (FINISHED, STOPPED, FAILED) or (values["state"] != FAILED and not values["blocks"]):
        raise UserError(
            f"{path}: expected {_KIND}, found state {values['state']!r} with {len(values['blocks'])} blocks"
        )
    known: dict[str, Any] = {name: values.get(name) for name in _TYPES}
    return TrialResult(**known)


def _is_pair(value: Any) -> bool:
    numbers = isinstance(value, list) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value)
    return numbers and len(value) == 2
