"""A run's folder, `RUNS/NAME/`: its configuration, its results and its MLflow run.

config.yaml       the options, section by section, and the store
aggregator/       config.json and model.safetensors
checkpoints/      the checkpoints of Ray Train
history.parquet   the metrics of every epoch
mlflow.json       id of the MLflow run
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from filelock import FileLock, Timeout

from scale_ray.errors import UserError, first_line, redacted
from scale_ray.files.failures import explained
from scale_ray.files.locations import absolute, atomic_write, check_within, exists, filesystem_of, is_uri, join
from scale_ray.files.small_files import read_json, read_yaml
from scale_ray.files.tables import read_parquet, write_parquet

# Options that runs of earlier versions did not have, and what these did.
_ADDED: dict[str, Any] = {
    "sets.position_dropout": 0.0,
    "sets.time_jitter": 0.0,
    "aggregator.position_scale": "video",
    "objective.negatives": "all",
    "training.pretrain_mode": "train",
    "training.store_weights": [],
    "probing.probe_mode": "train",
    "probing.token_weights": [],
    "representing.parts": ["x", "c"],
    "representing.unit_norm": False,
    "representing.token_weight": 1.0,
}


class RunFolder:
    """The folder of one run. Opening it creates nothing."""

    def __init__(self, runs: str, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"run: expected a name of letters, digits, '.', '_' and '-', found {name!r}")
        self.runs, self.name = absolute(runs), name
        self.location = join(self.runs, name)
        self.aggregator = join(self.location, "aggregator")
        check_within(self.aggregator, self.location)

    def write_config(self, config: Mapping[str, Any], *, again: bool = False) -> None:
        """Write the configuration of a new run, or `again`; URIs without passwords, keys and options."""
        path = join(self.location, "config.yaml")
        if again or not exists(path):
            with atomic_write(path) as file:
                file.write(yaml.safe_dump(redacted(dict(config)), sort_keys=False).encode())

    def check_config(self, config: Mapping[str, Any], free: Collection[str] = ()) -> None:
        """Check that an earlier run of this name, if there is one, had the same configuration.

        The options in `free`, by dotted name, may have changed.

        Raises
        ------
        UserError
            If it had another one: the message names the differences.
        """
        path = join(self.location, "config.yaml")
        if not exists(path):
            return
        before = read_yaml(path, "the configuration of a run", {section: dict | None for section in config})
        # Other keys, or another way to the same place, are no other configuration.
        before, config = redacted(before), redacted(config)
        for dotted, value in _ADDED.items():
            section, _, name = dotted.partition(".")
            if before.get(section) is not None:
                before[section].setdefault(name, value)
        differing = [
            f"{section}.{name} {(before.get(section) or {}).get(name)!r} before, {value!r} now"
            for section, values in config.items()
            for name, value in values.items()
            if f"{section}.{name}" not in free and (before.get(section) or {}).get(name) != value
        ]
        if differing:
            raise UserError(
                f"run: expected the configuration of the earlier run {self.name!r}, found {'; '.join(differing)}. "
                f"Use another --run"
            )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within the context, no other command on this machine works on this run; for folders on local disk.

        Raises
        ------
        UserError
            If another one does.
        """
        if is_uri(self.location):
            yield
            return
        path = join(self.location, "lock")
        check_within(path, self.location)
        with explained(self.location):
            Path(self.location).mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"run: expected a run that no other command works on, found {self.name!r} in use; wait for that "
                "command, or use another --run"
            ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def finished(self) -> bool:
        """Whether the run has its trained aggregator."""
        return exists(join(self.aggregator, "config.json"))

    def mlflow_run(self) -> str | None:
        """The id of the MLflow run, if it was started."""
        path = join(self.location, "mlflow.json")
        return read_json(path, "the id of an MLflow run", {"run_id": str})["run_id"] if exists(path) else None

    def remember_mlflow_run(self, run_id: str) -> None:
        """Save the id of the MLflow run."""
        # Only the id: a tracking URI may contain a password.
        with atomic_write(join(self.location, "mlflow.json")) as file:
            file.write(json.dumps({"run_id": run_id}).encode())

    def write_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Save the metrics of every epoch: a row per epoch, null for what an epoch does not have."""
        # Only some epochs have validation metrics.
        names = list(dict.fromkeys(name for row in history for name in row))
        with atomic_write(join(self.location, "history.parquet")) as file:
            write_parquet(pa.table({name: [row.get(name) for row in history] for name in names}), file)

    def history(self) -> list[dict[str, float]]:
        """The metrics of every epoch."""
        filesystem, path = filesystem_of(join(self.location, "history.parquet"))
        try:
            with filesystem.open_input_file(path) as file:
                table = read_parquet(file, path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: expected the metrics of a finished run, found a file that cannot be read "
                f"({first_line(error)})"
            ) from error
        _check_history(table, path)
        return table.to_pylist()


def _check_history(table: pa.Table, path: str) -> None:
    """Check that a table holds metrics: a row per epoch, and numbers only.

    Raises
    ------
    UserError
        If it does not.
    """
    numeric = (pa.types.is_floating, pa.types.is_integer, pa.types.is_null)
    text = [field.name for field in table.schema if not any(holds(field.type) for holds in numeric)]
    if text:
        raise UserError(f"{path}: expected metrics as numbers, found {text[0]} of type {table[text[0]].type}")
    for name in ("epoch", "loss"):
        if name not in table.column_names or not len(table) or table[name].null_count:
            raise UserError(f"{path}: expected a row per epoch with a value of {name!r}, found none")


def run_folder_of(aggregator: str) -> RunFolder | None:
    """The folder of the run that an aggregator's folder belongs to; None if it belongs to none."""
    run = absolute(aggregator).rpartition("/")[0]
    runs, _, name = run.rpartition("/")
    return RunFolder(runs, name) if exists(join(run, "history.parquet")) else None


def aggregator_of(checkpoint: str, runs: str) -> str:
    """The folder of the aggregator that `--checkpoint` names: by a run's name, its folder, or directly.

    Raises
    ------
    UserError
        If there is none of them.
    """
    candidates = [checkpoint, join(checkpoint, "aggregator"), join(runs, checkpoint, "aggregator")]
    for candidate in candidates:
        location = absolute(candidate)
        if exists(join(location, "config.json")) and exists(join(location, "model.safetensors")):
            return location
    raise UserError(
        f"checkpoint: expected the name of a finished run in {runs}, its folder or an aggregator's folder, "
        f"found none for {checkpoint!r}"
    )
