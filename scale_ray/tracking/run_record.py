"""The record of one run in MLflow: its options, metrics, files and models, and what MLflow lacks in the end."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scale_ray import __version__
from scale_ray.console import Console
from scale_ray.errors import RunFailed, first_line, redacted
from scale_ray.files.locations import showable
from scale_ray.tracking.outbox import Outbox

_FLUSH_S = 2.0
# The maximum that MLflow takes in one call.
_POINTS_PER_CALL = 1000
# How long the end of a run waits for MLflow, counted from its last answer; that of a failed or stopped run shorter.
PATIENCE_S = 60.0
_PATIENCE_AFTER_FAILURE_S = 10.0
# What MLflow answers for a run that does not exist, has been deleted, or cannot exist under this id.
NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
# Answers that a repetition does not change.
_REFUSALS = (*NO_SUCH_RUN, "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_STATE")
# The text of a database, in one of SQLAlchemy's.
_DATABASE_ERROR = re.compile(r"\((?:sqlite3|psycopg2?|pymysql|MySQLdb|pyodbc)\.[\w.]+\) (?P<reason>[^\n]+)")


class RunRecord:
    """One MLflow run. Metrics are collected and sent every few seconds: each call costs a transaction.

    Nothing here waits for MLflow, except `settle`, files and the end; and nothing but `register` fails if it does not
    answer. What it lacks at the end is printed in one line.

    As a context it ends itself, as FAILED if an exception passes through.
    """

    def __init__(
        self,
        client: Any,
        outbox: Outbox,
        console: Console,
        name: str,
        also_in: str | None = None,
        parent: RunRecord | None = None,
    ) -> None:
        self.run_id = ""
        self.name, self.parent = redacted(name), parent
        self._client, self._outbox, self._console, self._also_in = client, outbox, console, also_in
        self._points: list[tuple[str, float, int, int]] = []
        self._sent_s = time.monotonic()
        self._lacking: list[str] = []
        self._children: list[RunRecord] = []
        self._given_up = False
        if parent is not None:
            parent._children.append(self)

    def begin(self, experiment_id: str, parent: str | None, began_s: float | None = None) -> bool:
        """Create the run in MLflow, as begun at this Unix time, by default now."""
        tags = {"mlflow.runName": self.name, "mlflow.source.name": "scale-ray", **_provenance()}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        began_ms = int(1000 * (time.time() if began_s is None else began_s))
        self.run_id = self._client.create_run(experiment_id, began_ms, tags, self.name).info.run_id
        return True

    def options(self, options: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        flat: list[Param] = []
        for section, value in redacted(options).items():
            if isinstance(value, Mapping):
                flat += [Param(f"{section}.{name}", str(inner)) for name, inner in value.items()]
            else:
                flat.append(Param(section, str(value)))

        def send() -> bool:
            self._client.log_batch(self.run_id, params=flat)
            return True

        self._outbox.put(send)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, under `scale_ray.`; a later value replaces an earlier one."""
        from mlflow.entities import RunTag

        self._set([RunTag(f"scale_ray.{name}", str(value)) for name, value in redacted(dict(tags)).items()])

    def describe(self, markdown: str) -> None:
        """Set the description that MLflow's page shows first, in Markdown; texts of others must be escaped."""
        from mlflow.entities import RunTag

        self._set([RunTag("mlflow.note.content", redacted(markdown))])

    def _set(self, tags: list[Any]) -> None:
        def send() -> bool:
            self._client.log_batch(self.run_id, tags=tags)
            return True

        self._outbox.put(send)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now_ms = int(time.time() * 1000)
        self._points += [(name, float(value), now_ms, step) for name, value in values.items()]
        if time.monotonic() - self._sent_s > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Send what has been collected as soon as MLflow takes it."""
        self._sent_s = time.monotonic()
        if self._points:
            self._outbox.put(self._send_points)

    def _send_points(self) -> bool:
        from mlflow.entities import Metric

        # Only the thread of the outbox removes points; repeated ones are the same to MLflow.
        points = self._points[:_POINTS_PER_CALL]
        if points:
            self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in points])
            del self._points[: len(points)]
        return not self._points

    def settle(self, within_s: float | None = None) -> bool:
        """Wait until MLflow has everything; False if it does not answer for `within_s`, by default `PATIENCE_S`.

        It is waited for only once: afterwards the answer stays.
        """
        if not self._given_up:
            self.flush()
            self._given_up = not self._outbox.settle(PATIENCE_S if within_s is None else within_s)
        return not self._given_up

    def _try(self, what: str, call: Callable[[], object]) -> bool:
        """Make a call now; False if it is not possible, which is remembered for the line about what MLflow lacks."""
        if self.settle():
            try:
                call()
            except Exception as error:  # noqa: BLE001 - clients of artifact stores raise errors of many packages
                self._outbox.reason = reason_of(error)
            else:
                return True
        self._lacking.append(what)
        return False

    def dataset(self, name: str, source: str, digest: str, profile: Mapping[str, Any]) -> None:
        """Log what the run was trained on; `digest` is at most 36 characters long."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        place = json.dumps({"uri": showable(source)})
        dataset = Dataset(name, digest, "feature_store", place, profile=json.dumps(profile))

        def send() -> bool:
            self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
            return True

        self._outbox.put(send)

    def trained_model(self, folder: str, name: str, step: int) -> str | None:
        """Log a local folder as the model that the run trained, complete after `step` epochs.

        Returns the reason if that was not possible: tracking servers before MLflow 3 have no such models.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        if not self.settle():
            return self._outbox.reason
        try:
            experiment = self._client.get_run(self.run_id).info.experiment_id
            model = self._client.create_logged_model(experiment, name, self.run_id, model_type="scale_ray.Aggregator")
            self._client.log_model_artifacts(model.model_id, folder)
            self._client.finalize_logged_model(model.model_id, "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        except MlflowException as error:
            return first_line(error)
        return None

    def register(self, folder: str, name: str) -> None:
        """Make an artifact folder of this run a new version of a registered model, created if necessary.

        Raises
        ------
        RunFailed
            If MLflow does not answer, or does not have the folder.
        """
        from mlflow.exceptions import MlflowException

        def call() -> None:
            try:
                self._client.get_registered_model(name)
            except MlflowException:
                self._client.create_registered_model(name)
            source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{folder}"
            self._client.create_model_version(name, source, self.run_id)

        if self._lacking or not self._try(f"version of the registered model {name}", call):
            raise RunFailed(
                f"register: expected an MLflow that takes a new version of {name}, found: {self._outbox.reason}; run "
                "the same command again"
            )

    def model(self, folder: str, name: str) -> None:
        """Log a folder that `save_video_model` wrote as an artifact, and make it a version of a registered model."""
        self.file(folder, "model")
        self.register("model", name)

    def file(self, path: str, folder: str | None = None) -> None:
        """Log a local file, or the files of a local folder, as artifacts."""
        log = self._client.log_artifacts if os.path.isdir(path) else self._client.log_artifact
        self._try(f"files of {folder or os.path.basename(path)}", lambda: log(self.run_id, path, folder))

    def content(self, content: bytes, name: str) -> None:
        """Log bytes as an artifact of this name."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            self._try(name, lambda: self._client.log_artifact(self.run_id, str(path)))

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(failed=kind is not None)

    def end(self, *, failed: bool = False, ended_s: float | None = None) -> None:
        """End the run; unless it is a child, wait until MLflow has everything, or print what it lacks.

        `ended_s` is the Unix time at which it ended, by default now.
        """
        self.flush()
        ended_ms = int(1000 * (time.time() if ended_s is None else ended_s))

        def send() -> bool:
            self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED", ended_ms)
            return True

        self._outbox.put(send)
        if self.parent is None:
            self.settle(_PATIENCE_AFTER_FAILURE_S if failed else PATIENCE_S)
            self._say_what_is_lacking()

    def _say_what_is_lacking(self) -> None:
        lacking = [text for record in (self, *self._children) for text in record._missing()]
        if lacking or self._given_up:
            also_in = f"; {self._also_in}" if self._also_in else ""
            self._console.say(
                f"MLflow does not have {', '.join(lacking) or 'the end'} of run {self.name} "
                f"({self._outbox.reason or 'no answer'}){also_in}"
            )

    def _missing(self) -> list[str]:
        """What could not be sent, in words."""
        of_child = f" of trial {self.name}" if self.parent is not None else ""
        if not self.run_id:
            return [f"anything{of_child}"]
        epochs = [step for name, _, _, step in self._points if not name.startswith("step/")]
        since = f" from epoch {min(epochs)} on" if epochs else ""
        points = [f"{len(self._points)} metrics{since}{of_child}"] if self._points else []
        return [*points, *(f"{text}{of_child}" for text in self._lacking)]


def reason_of(error: Exception) -> str:
    """Why MLflow or an artifact store did not take something, in a few words and without addresses."""
    if found := _DATABASE_ERROR.search(str(error)):
        return found["reason"]
    code = getattr(error, "error_code", None)
    if code in _REFUSALS:
        return first_line(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__} {code}" if code and code != "INTERNAL_ERROR" else type(error).__name__


def is_refused(error: Exception) -> bool:
    return getattr(error, "error_code", None) in _REFUSALS


def _provenance() -> dict[str, str]:
    """The version of this code and the command that runs it, as tags; URIs without passwords and keys."""
    # Anywhere in a word: also in --tracking-uri=postgresql://user:password@host.
    command = shlex.join(redacted([Path(sys.argv[0]).name, *sys.argv[1:]]))
    tags = {"scale_ray.version": __version__, "scale_ray.command": command}
    # Only in a checkout of this package: installed, it may lie in another repository, which does not track it.
    if commit := _git("log", "-1", "--format=%H", "--", "."):
        tags["mlflow.source.git.commit"] = commit
        tags["scale_ray.changed_since_commit"] = str(bool(_git("status", "--porcelain", "--", ".")))
    return tags


def _git(*arguments: str) -> str:
    """The output of git in the folder of this package; empty if there is no git or no repository."""
    try:
        asked = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
