"""MLflow: options, metrics and artifacts of every run. The only module that imports it.

MLflow is imported when it is first used, since that takes seconds. One process per run writes to it. A run begins only
if MLflow answers; from then on nothing waits for it but the end of the run, for a limited time.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from scale_ray import __version__
from scale_ray.config import Tracking
from scale_ray.console import Console
from scale_ray.errors import RunFailed, UserError, first_line, redacted
from scale_ray.files.failures import explained
from scale_ray.files.locations import absolute, is_below, is_uri, join, showable
from scale_ray.tracking.outbox import Outbox

_CONSOLE = Console()

# "1" does not count as switched off here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# At the end of a run it would print the tracking URI with its password.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# By default one request to a server that is away takes minutes. Here the outbox repeats it.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

_FLUSH_S = 2.0
# The maximum that MLflow takes in one call.
_POINTS_PER_CALL = 1000
# How long the end of a run waits for MLflow, counted from its last answer; that of a failed or stopped run shorter.
PATIENCE_S = 60.0
_PATIENCE_AFTER_FAILURE_S = 10.0
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
# What MLflow answers for a run that does not exist, has been deleted, or cannot exist under this id.
_NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
# Answers that a repetition does not change.
_REFUSALS = (*_NO_SUCH_RUN, "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_STATE")
# The text of a database, in one of SQLAlchemy's.
_DATABASE_ERROR = re.compile(r"\((?:sqlite3|psycopg2?|pymysql|MySQLdb|pyodbc)\.[\w.]+\) (?P<reason>[^\n]+)")
# MLflow's page opens the experiment as model training, not as an application of language models.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


def tracking_uri(tracking: Tracking, runs: str) -> str:
    """The URI to use: the option's, else MLFLOW_TRACKING_URI, otherwise a database in the runs folder."""
    given = tracking.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    if is_uri(runs):
        raise UserError(f"tracking_uri: expected one, since the runs are not on local disk ({runs}), found none")
    return f"sqlite:///{absolute(runs)}/mlflow.db"


def _is_own(tracking: Tracking) -> bool:
    """Whether the database is the one in the runs folder, which may be somebody else's: nobody named it."""
    return not (tracking.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))


# Where a database says that files are: MLflow writes to these places, and its page serves what is there.
_PLACES = (
    "SELECT artifact_location FROM experiments WHERE experiment_id != 0",
    "SELECT artifact_uri FROM runs",
    "SELECT artifact_location FROM logged_models",
    "SELECT source FROM model_versions",
    "SELECT storage_location FROM model_versions",
    "SELECT value FROM trace_tags WHERE key = 'mlflow.artifactLocation'",
)


def _check_own_database(tracking: Tracking, runs: str) -> None:
    """Check that the database in the runs folder keeps its files there.

    Raises
    ------
    UserError
        If it names a server, or an existing place elsewhere (after the runs were moved, the former one is gone); or if
        it cannot be read.
    """
    database = Path(absolute(runs), "mlflow.db")
    if not _is_own(tracking) or not database.exists():
        return
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        for query in _PLACES:
            try:
                places = [place for (place,) in connection.execute(query.replace("SELECT", "SELECT DISTINCT"))]
            except sqlite3.Error as error:
                if "no such" in str(error):  # a table or column that this version of MLflow does not have
                    continue
                raise UserError(f"runs: expected a database that can be read, found {database}: {error}") from error
            for place in places:
                if place and not _is_below(place, runs) and (_local_path(place) is None or _exists(place)):
                    raise _foreign(place, runs)


def _is_below(place: str, runs: str) -> bool:
    if place.startswith(("models:/", "runs:/")):  # another row of the database
        return True
    path = _local_path(place)
    return path is not None and is_below(path, [absolute(runs)])


def _exists(place: str) -> bool:
    path = _local_path(place)
    return path is not None and os.path.exists(path)


def _local_path(place: str) -> str | None:
    """The path of a place on this machine; None for any other."""
    if place.startswith("file:"):
        parsed = urlparse(place)
        return unquote(parsed.path) if parsed.netloc in ("", "localhost") else None
    return place if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", place) is None else None


def _foreign(place: str, runs: str) -> UserError:
    return UserError(
        f"runs: expected a database with all files below {runs}, found {showable(place)} in {runs}/mlflow.db; if it is "
        f"yours, give --tracking-uri sqlite:///{absolute(runs)}/mlflow.db"
    )


def artifact_root(uri: str, runs: str) -> str | None:
    """Where a new experiment keeps its artifacts: `RUNS/artifacts`; None if a tracking server decides.

    Without it a database would put them into `mlruns` of the working folder, which vanishes with a job.
    """
    if uri.partition("://")[0].partition("+")[0] not in _DATABASES:
        return None
    # MLflow keeps it in its database and on its page, and finds keys and options in the environment.
    return join(showable(runs), "artifacts") if is_uri(runs) else Path(absolute(runs), "artifacts").as_uri()


class Experiment:
    """An experiment on a tracking server or in a database, created if it does not exist.

    Raises
    ------
    UserError
        If the tracking URI does not answer.
    """

    def __init__(self, tracking: Tracking, runs: str, console: Console = _CONSOLE) -> None:
        self.uri = tracking_uri(tracking, runs)
        self.name = tracking.experiment
        self._console = console
        _check_own_database(tracking, runs)
        if self.uri.startswith("sqlite") and not is_uri(runs):
            with explained(runs):
                Path(runs).mkdir(parents=True, exist_ok=True)
        with _answering(self.uri):
            self._client = _client(self.uri)
            existing = self._client.get_experiment_by_name(self.name)
            if existing is None:
                self._id = self._client.create_experiment(self.name, artifact_root(self.uri, runs), _KIND)
            else:
                if _is_own(tracking) and not _is_below(existing.artifact_location, runs):
                    raise _foreign(existing.artifact_location, runs)
                self._id = existing.experiment_id
                for key in _KIND.keys() - existing.tags.keys():
                    self._client.set_experiment_tag(self._id, key, _KIND[key])
        self._outbox = Outbox(f"MLflow at {showable(self.uri)}", console.say, _reason, _is_refused)

    def start(
        self, name: str, options: Mapping[str, Any], *, parent: str | None = None, also_in: str | None = None
    ) -> RunRecord:
        """Start a run; `options` may be nested by section. With `parent` it is a child of that run.

        `also_in` says where else its results are, for the message about what MLflow lacks.

        Raises
        ------
        UserError
            If MLflow does not answer.
        """
        record = RunRecord(self._client, self._outbox, self._console, name, also_in)
        with _answering(self.uri):
            record.begin(self._id, parent)
        record.options(options)
        return record

    def start_later(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        parent: RunRecord | None = None,
        below: str | None = None,
        also_in: str | None = None,
    ) -> RunRecord:
        """Start a run as soon as MLflow answers, if need be later.

        With `parent` it is a child of that run, which waits for it at its own end; with `below` a child of the run
        of this id.
        """
        record = RunRecord(self._client, self._outbox, self._console, name, also_in, parent)
        self._outbox.put(lambda: record.begin(self._id, below if parent is None else parent.run_id))
        record.options(options)
        return record

    def resume(self, run_id: str, name: str = "", *, also_in: str | None = None) -> RunRecord | None:
        """Go on with a run; None if MLflow does not know it, or holds it as deleted."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code in _NO_SUCH_RUN:
                return None
            raise UserError(
                f"tracking_uri: expected an MLflow that goes on with run {run_id}, found: {_reason(error)}"
            ) from error
        record = RunRecord(self._client, self._outbox, self._console, name, also_in)
        record.run_id = run_id
        return record

    def end_children(self, parent: RunRecord) -> None:
        """End the children of a run that an interrupted command left running, as KILLED."""

        def send() -> bool:
            running = f"tags.`mlflow.parentRunId` = '{parent.run_id}' and attributes.status = 'RUNNING'"
            for child in self._client.search_runs([self._id], running):
                self._client.set_terminated(child.info.run_id, "KILLED")
            return True

        self._outbox.put(send)


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

    def begin(self, experiment_id: str, parent: str | None) -> bool:
        """Create the run in MLflow."""
        tags = {"mlflow.runName": self.name, "mlflow.source.name": "scale-ray", **_provenance()}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        self.run_id = self._client.create_run(experiment_id, tags=tags, run_name=self.name).info.run_id
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

        named = [RunTag(f"scale_ray.{name}", str(value)) for name, value in redacted(dict(tags)).items()]

        def send() -> bool:
            self._client.log_batch(self.run_id, tags=named)
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
                self._outbox.reason = _reason(error)
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

    def end(self, *, failed: bool = False) -> None:
        """End the run; unless it is a child, wait until MLflow has everything, or print what it lacks."""
        self.flush()

        def send() -> bool:
            self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
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


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Within the context, an MLflow that does not answer is an error of the user's."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(
            f"tracking_uri: expected an MLflow that answers, found none at {showable(uri)}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """Why MLflow or an artifact store did not take something, in a few words and without addresses."""
    if found := _DATABASE_ERROR.search(str(error)):
        return found["reason"]
    code = getattr(error, "error_code", None)
    if code in _REFUSALS:
        return first_line(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__} {code}" if code and code != "INTERNAL_ERROR" else type(error).__name__


def _is_refused(error: Exception) -> bool:
    return getattr(error, "error_code", None) in _REFUSALS


def save_video_model(folder: str, data: str) -> None:
    """Wrap what `VideoModel.save` wrote into `data` as an MLflow model in `folder`, with a signature.

    Loading it calls a function of this package; no pickle is read.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "path"),
                ColSpec(Array(DataType.float), "vector", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
    )
    with warnings.catch_warnings():
        # An example would have to be a video at the same path on every machine.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            folder,
            loader_module="scale_ray.embedding.video_model",
            data_path=data,
            signature=signature,
            pip_requirements=[f"scale-ray=={__version__}"],
        )


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


def server_command(tracking: Tracking, runs: str, host: str, port: int) -> list[str]:
    """The command that serves the runs to a browser, to be run in the `server_environment`.

    Raises
    ------
    UserError
        If there are no runs, or the tracking URI is a server already.
    """
    uri = tracking_uri(tracking, runs)
    if uri.startswith(("http://", "https://")):
        raise UserError(f"expected a database to serve, found a server that can be opened directly: {showable(uri)}")
    if uri.startswith("sqlite:///") and not os.path.exists(uri.removeprefix("sqlite:///")):
        raise UserError(f"runs: expected a folder with runs, found no database {uri.removeprefix('sqlite:///')}")
    _check_own_database(tracking, runs)
    command = ["mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    if root := artifact_root(uri, runs):
        command += ["--default-artifact-root", root]
    return command


def server_environment(tracking: Tracking, runs: str) -> dict[str, str]:
    """What the `server_command` finds in its environment: the database, whose password all users of a machine would
    see in the list of processes.
    """
    return {"MLFLOW_BACKEND_STORE_URI": tracking_uri(tracking, runs)}


def _client(uri: str) -> Any:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # Otherwise every migration of a new database is logged; importing MLflow sets the levels.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs tracebacks of the exceptions that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise UserError(f"tracking_uri: expected an MLflow URI, found {showable(uri)}") from error
