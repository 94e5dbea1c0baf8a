"""Everything away from the nodes: videos, store, checkpoints and artifacts in a bucket, MLflow's server on PostgreSQL.

The cluster asks for a token, and is in a process with an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs
from support.command import PROJECT, Ended
from support.jobs import EXTRACT, MODULES, PRETRAIN
from support.postgres import postgres, program
from support.servers import free_port, serving

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1200)]
TOKEN = "0123456789abcdef" * 4
SECRETS = ("nobodys+very/secret+value", TOKEN, "sesame")


@dataclass(frozen=True)
class Away:
    """The addresses of the job server and of MLflow."""

    jobs: str
    mlflow: str

    def run(self, folder: Path, *arguments: object, token: str | None = TOKEN) -> Ended:
        """Run a command as a job, with or without the token of the cluster."""
        environment = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{MODULES}", "RAY_AUTH_MODE": "disabled"}
        if token is not None:
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        ended = subprocess.run(
            [sys.executable, "-m", "scale_ray", *map(str, arguments), "--address", self.jobs],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            timeout=500,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def away(few_videos: Path) -> Iterator[Away]:
    if program("postgres") is None:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    bucket = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    bucket.start()
    host, port = bucket.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIANOBODYSKEY",
        "AWS_SECRET_ACCESS_KEY": SECRETS[0],
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        filesystem, _ = fs.FileSystem.from_uri("s3://nodes/?allow_bucket_creation=true")
        filesystem.create_dir("nodes")
        fs.copy_files(str(few_videos), "nodes/videos", destination_filesystem=filesystem)
        server_port = free_port()
        with postgres() as database:
            options = ("--backend-store-uri", database, "--artifacts-destination", "s3://nodes/mlflow")
            arguments = ("server", *options, "--host", "127.0.0.1", "--port", str(server_port), "--workers", "1")
            with serving("mlflow", *arguments, port=server_port, within_s=120), _cluster() as jobs:
                yield Away(jobs, f"http://127.0.0.1:{server_port}")
    bucket.stop()


class _cluster:
    """A cluster of two nodes in its own process, whose job server is the value of the context."""

    def __enter__(self) -> str:
        script = Path(__file__).parents[1] / "support" / "serve_cluster.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script), "2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return str(json.loads(line)["jobs"])
        raise AssertionError("the cluster did not start")

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@pytest.mark.parametrize(("token", "found"), [(None, "found none"), ("f" * 64, "found another one")])
def test_without_the_token_everything_is_refused_in_one_line(away, tmp_path, token, found):
    ended = away.run(tmp_path, "extract", "s3://nodes/videos", "--store", "s3://nodes/store", token=token)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert f"address: expected a token that {away.jobs} takes, {found}" in ended.err
    assert ended.out == ""


def test_a_pipeline_in_a_bucket_is_recorded_by_the_server(away, few_videos, tmp_path):
    options = (*EXTRACT, *PRETRAIN, "--epochs", 20, "--probe-epochs", 1, "--probe-min-steps", 5, "--probes", "knn")
    places = ("--store", "s3://nodes/store", "--runs", "s3://nodes/runs", "--run", "first")
    ended = away.run(tmp_path, "pipeline", "s3://nodes/videos", *places, "--tracking-uri", away.mlflow, *options)
    assert ended.code == 0, ended.err
    assert not any(secret in ended.err + ended.out for secret in SECRETS)
    filesystem, _ = fs.FileSystem.from_uri("s3://nodes")
    names = [info.path for info in filesystem.get_file_info(fs.FileSelector("nodes", recursive=True))]
    for place in ("store/features/part-", "runs/first/aggregator/model.safetensors", "runs/first/checkpoints/"):
        assert any(name.startswith(f"nodes/{place}") for name in names), place
    client = mlflow.MlflowClient(away.mlflow)
    [experiment] = [e for e in client.search_experiments() if e.name == "scale-ray"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["first", "probe of first"]
    assert all(run.info.status == "FINISHED" for run in runs)
    [trained] = [run for run in runs if run.info.run_name == "first"]
    assert len(client.get_metric_history(trained.info.run_id, "loss")) == 20
    # The server keeps the artifacts, in its bucket.
    assert any(name.startswith("nodes/mlflow/") and name.endswith("model.safetensors") for name in names)
    assert not (tmp_path / "mlruns").exists()
    texts = json.dumps([{**run.data.params, **run.data.tags} for run in runs])
    assert not any(secret in texts for secret in SECRETS)
