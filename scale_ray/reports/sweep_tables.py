"""The tables of a sweep: a row per setting, best first, and a row per trial."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from scale_ray.search import SettingResult, TrialResult


def setting_rows(settings: Sequence[SettingResult]) -> list[dict[str, Any]]:
    """Per setting its options, the objective with its interval, seeds, epochs and state."""
    return [_setting_row(result) for result in settings]


def sweep_tables(settings: Sequence[SettingResult], trials: Sequence[TrialResult]) -> dict[str, bytes]:
    """The files `settings.csv` and `trials.csv`."""
    return {"settings.csv": _csv(setting_rows(settings)), "trials.csv": _csv([_trial_row(trial) for trial in trials])}


def _options(setting: Mapping[str, Any]) -> dict[str, Any]:
    return {name.rpartition(".")[2]: value for name, value in setting.items()}


def _setting_row(result: SettingResult) -> dict[str, Any]:
    return {
        **_options(result.setting),
        "objective": result.value,
        "low": result.low,
        "high": result.high,
        "behind_best": result.behind,
        "behind_low": result.behind_low,
        "behind_high": result.behind_high,
        "tied": result.is_tied,
        "seeds": len(result.each),
        "epochs": result.epochs,
        "seconds": result.seconds,
        "state": result.state,
    }


def _trial_row(trial: TrialResult) -> dict[str, Any]:
    return {
        **_options(trial.setting),
        "seed": trial.seed,
        "objective": trial.value,
        "epochs": trial.epochs,
        "seconds": trial.seconds,
        "state": trial.state,
        "reason": trial.reason or "",
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()
