"""MLflow: what was run, with what, and what came out. The only module that imports it.

MLflow is imported when it is first used, since that takes seconds. One process of a run writes to it.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scale_ray import __version__
from scale_ray.config import Tracking
from scale_ray.errors import UserError
from scale_ray.locations import absolute, is_uri, join

# "1" does not count as switched off here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

_FLUSH_S = 2.0


def tracking_uri(tracking: Tracking, runs: str) -> str:
    """The URI that counts: the option's, else MLFLOW_TRACKING_URI, else a data base among the runs."""
    given = tracking.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    if is_uri(runs):
        raise UserError(f"tracking_uri: expected one where runs are not on local disk, found none for {runs}")
    return f"sqlite:///{absolute(runs)}/mlflow.db"


def without_password(uri: str) -> str:
    """The URI as it may be shown: user and password taken out."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class Experiment:
    """An experiment on one tracking server or data base, made if it is not there.

    Raises
    ------
    UserError
        Where the tracking URI does not answer.
    """

    def __init__(self, tracking: Tracking, runs: str) -> None:
        self.uri = tracking_uri(tracking, runs)
        self.name = tracking.experiment
        if self.uri.startswith("sqlite") and not is_uri(runs):
            Path(runs).mkdir(parents=True, exist_ok=True)
        self._client = _client(self.uri)
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_experiment_by_name(self.name)
            # A data base of ours keeps its files beside it; a server decides for itself.
            artifacts = None
            if self.uri.startswith("sqlite") and not is_uri(runs):
                artifacts = Path(absolute(runs), "artifacts").as_uri()
            self._id = found.experiment_id if found else self._client.create_experiment(self.name, artifacts)
        except MlflowException as error:
            raise UserError(
                f"tracking_uri: expected an MLflow that answers, found none at {without_password(self.uri)}: "
                f"{type(error).__name__}"
            ) from error

    def start(self, name: str, options: Mapping[str, Any], *, parent: str | None = None) -> RunRecord:
        """Begin a run; `options` may be nested by section. With `parent` it is a child of that run."""
        tags = {"mlflow.runName": name, "mlflow.source.name": "scale-ray", **_provenance()}
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self._id, tags=tags, run_name=name)
        record = RunRecord(self.uri, run.info.run_id)
        record.options(options)
        return record

    def resume(self, run_id: str) -> RunRecord:
        self._client.update_run(run_id, status="RUNNING")
        return RunRecord(self.uri, run_id)


class RunRecord:
    """One MLflow run. Metrics are gathered and sent every few seconds: each call costs a transaction.

    As a context it ends itself, as FAILED where an exception passes through.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._client = _client(uri)
        self._waiting: list[Any] = []
        self._sent_s = time.monotonic()

    def options(self, options: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        flat: list[Param] = []
        for section, value in options.items():
            if isinstance(value, Mapping):
                flat += [Param(f"{section}.{name}", str(inner)) for name, inner in value.items()]
            else:
                flat.append(Param(section, str(value)))
        self._client.log_batch(self.run_id, params=flat)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now_ms, step) for name, value in values.items()]
        if time.monotonic() - self._sent_s > _FLUSH_S:
            self.flush()

    def register(self, folder: str, name: str) -> None:
        """Make an artifact folder of this run a new version of a registered model, which is made if need be."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(name)
        except MlflowException:
            self._client.create_registered_model(name)
        source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{folder}"
        self._client.create_model_version(name, source, self.run_id)

    def model(self, folder: str, name: str) -> None:
        """Log a folder that `save_video_model` wrote as an artifact folder, and make it a version of a model."""
        self.file(folder, "model")
        self.register("model", name)

    def flush(self) -> None:
        for start in range(0, len(self._waiting), 1000):
            self._client.log_batch(self.run_id, metrics=self._waiting[start : start + 1000])
        self._waiting = []
        self._sent_s = time.monotonic()

    def file(self, path: str, folder: str | None = None) -> None:
        """Log a local file, or what a local folder holds, as artifacts."""
        if os.path.isdir(path):
            self._client.log_artifacts(self.run_id, path, folder)
        else:
            self._client.log_artifact(self.run_id, path, folder)

    def content(self, content: bytes, name: str) -> None:
        """Log bytes as an artifact of this name."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            self._client.log_artifact(self.run_id, str(path))

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(failed=kind is not None)

    def end(self, *, failed: bool = False) -> None:
        self.flush()
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


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
        # An example would be a video that lies at the same place on every machine.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            folder,
            loader_module="scale_ray.embedding.video_model",
            data_path=data,
            signature=signature,
            pip_requirements=[f"scale-ray=={__version__}"],
        )


def _provenance() -> dict[str, str]:
    """The version of this code and the command that runs it, as tags; passwords in URIs taken out."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    # Anywhere in a word: also in --tracking-uri=postgresql://user:password@host.
    command = re.sub(r"://[^/\s]*@", "://", command)
    tags = {"scale_ray.version": __version__, "scale_ray.command": command}
    # Of a checkout of this package alone: installed, it may lie in a stranger's repository, which does not track it.
    if commit := _git("log", "-1", "--format=%H", "--", "."):
        tags["mlflow.source.git.commit"] = commit
        tags["scale_ray.changed_since_commit"] = str(bool(_git("status", "--porcelain", "--", ".")))
    return tags


def _git(*arguments: str) -> str:
    """What git says of the folder of this package; nothing where there is no git or no repository."""
    try:
        asked = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def server_command(tracking: Tracking, runs: str, host: str, port: int) -> list[str]:
    """The command that shows the runs in a browser."""
    uri = tracking_uri(tracking, runs)
    if uri.startswith(("http://", "https://")):
        raise UserError(
            f"expected a data base to serve, found a server that can be opened as it is: {without_password(uri)}"
        )
    if uri.startswith("sqlite:///") and not os.path.exists(uri.removeprefix("sqlite:///")):
        raise UserError(f"runs: expected a folder with runs, found no data base {uri.removeprefix('sqlite:///')}")
    command = ["mlflow", "server", "--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    if not is_uri(runs):
        command += ["--default-artifact-root", Path(join(absolute(runs), "artifacts")).as_uri()]
    return command


def _client(uri: str) -> Any:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # Migrations of a new data base are told line by line otherwise; importing MLflow sets the levels.
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise UserError(f"tracking_uri: expected an MLflow URI, found {without_password(uri)}") from error
