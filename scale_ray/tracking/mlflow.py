"""MLflow: its experiments, its server and its models. Only this module and `run_record` import it.

MLflow is imported when it is first used, since that takes seconds. One process per run writes to it. A run begins only
if MLflow answers; from then on nothing waits for it but the end of the run, for a limited time.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from scale_ray import __version__
from scale_ray.config import Tracking
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.files.failures import explained
from scale_ray.files.locations import absolute, is_below, is_uri, join, showable
from scale_ray.tracking.outbox import Outbox
from scale_ray.tracking.run_record import NO_SUCH_RUN, RunRecord, is_refused, reason_of

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

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
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
        self._outbox = Outbox(f"MLflow at {showable(self.uri)}", console.say, reason_of, is_refused)

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
        began_s: float | None = None,
    ) -> RunRecord:
        """Start a run as soon as MLflow answers, if need be later; it began at this Unix time, by default now.

        With `parent` it is a child of that run, which waits for it at its own end; with `below` a child of the run
        of this id.
        """
        began_s = time.time() if began_s is None else began_s
        record = RunRecord(self._client, self._outbox, self._console, name, also_in, parent)
        self._outbox.put(lambda: record.begin(self._id, below if parent is None else parent.run_id, began_s))
        record.options(options)
        return record

    def resume(self, run_id: str, name: str = "", *, also_in: str | None = None) -> RunRecord | None:
        """Go on with a run; None if MLflow does not know it, or holds it as deleted."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code in NO_SUCH_RUN:
                return None
            raise UserError(
                f"tracking_uri: expected an MLflow that goes on with run {run_id}, found: {reason_of(error)}"
            ) from error
        record = RunRecord(self._client, self._outbox, self._console, name, also_in)
        record.run_id = run_id
        return record

    def end_children(self, parent: RunRecord) -> list[tuple[dict[str, str], str]]:
        """End the children of a run that an interrupted command left running, as KILLED.

        Returns the options and the state (the tag `scale_ray.state`) of the others: what MLflow has in full.

        Raises
        ------
        UserError
            If MLflow does not answer.
        """
        children = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
        complete: list[tuple[dict[str, str], str]] = []
        token: str | None = ""
        with _answering(self.uri):
            while token is not None:
                page = self._client.search_runs([self._id], children, page_token=token or None)
                for child in page:
                    if child.info.status == "RUNNING":
                        self._client.set_terminated(child.info.run_id, "KILLED")
                    elif child.info.status != "KILLED":
                        complete.append((child.data.params, child.data.tags.get("scale_ray.state", "")))
                token = page.token or None
        return complete


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Within the context, an MLflow that does not answer is an error of the user's."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(
            f"tracking_uri: expected an MLflow that answers, found none at {showable(uri)}: {reason_of(error)}"
        ) from error


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
