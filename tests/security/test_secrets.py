"""Passwords and keys in URIs stay where they are needed: they are neither shown nor recorded."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
import yaml
from support.servers import free_port
from support.stores import make_store

from scale_ray.aggregator import Aggregator
from scale_ray.cli.main import main
from scale_ray.config import AggregatorOptions, PretrainConfig, Tracking
from scale_ray.console import Console
from scale_ray.errors import RunFailed, UserError, VideoError, redacted
from scale_ray.stages.pretrain import _mlflow_run
from scale_ray.store import FeatureStore, TrainingStores
from scale_ray.tracking import Experiment, RunFolder, server_command

SECRET = "S3CRET"
URIS = [
    f"s3://KEY:{SECRET}@bucket/features",
    f"s3://KEY:{SECRET}/with+slash=@bucket/features",
    f"s3://KEY:{SECRET}?with@bucket/features",
    f"s3://bucket/features?access_key=KEY&secret_key={SECRET}&endpoint_override=http://127.0.0.1:9000",
    f"s3://bucket/features#1?secret_key={SECRET}",
    f"postgresql://user:{SECRET}@db:5432/mlflow",
    f"mysql+pymysql://user:p@ss{SECRET}@db/mlflow?ssl=1",
    f"https://me:{SECRET}@mlflow.example/",
    f"https://host/video.mp4?X-Amz-Signature={SECRET}",
]


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize("kind", [UserError, RunFailed, lambda text: VideoError("open", text, text)])
def test_no_error_says_a_secret(uri, kind):
    for text in (f"{uri}: expected a store", f"expected a path, found {uri!r}: no such bucket", f"({uri}) or 'x'"):
        error = kind(text)
        for shown in (str(error), repr(error), str(pickle.loads(pickle.dumps(error)))):
            assert SECRET not in shown
            assert "://" in shown


def test_an_unreachable_store_is_refused_without_its_keys(capsys):
    uri = f"nosuch://KEY:{SECRET}@bucket/store?secret_key={SECRET}"
    with pytest.raises(SystemExit) as ended:
        main(["store", uri])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "nosuch://bucket/store" in printed.err
    assert SECRET not in printed.err + printed.out


@pytest.fixture
def remote_store(tmp_path) -> Iterator[str]:
    """The URI, with keys, of a store in the memory of this process."""
    make_store(tmp_path / "made", {f"v{i}": np.ones((16, 5)) for i in range(6)}, sides=["train"] * 4 + ["test"] * 2)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/made", f"KEY:{SECRET}@bucket/store", recursive=True)
    yield f"memory://KEY:{SECRET}@bucket/store?secret_key={SECRET}"
    memory.rm(f"KEY:{SECRET}@bucket", recursive=True)


def test_results_are_printed_without_keys(capsys, remote_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = FeatureStore(remote_store)
    Aggregator(5, AggregatorOptions(width=32), store.origin).save(str(tmp_path / "a"))
    for arguments in (
        ("store", remote_store, "--verify"),
        ("store", remote_store, "--json"),
        ("embed", "--store", remote_store, "--checkpoint", "a", "--out", remote_store.replace("/store", "/vectors")),
        (
            "embed",
            "--store",
            remote_store,
            "--checkpoint",
            "a",
            "--out",
            remote_store.replace("/store", "/more"),
            "--json",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        assert printed.out
        assert SECRET not in printed.out + printed.err
        if "--json" in arguments:
            assert json.loads(printed.out)


def test_a_run_and_its_record_hold_no_keys_and_the_run_goes_on_with_others(tmp_path, remote_store, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale-ray", "pretrain", "--store", remote_store, f"--x={URIS[1]}"])
    store = FeatureStore(remote_store)
    folder = RunFolder(str(tmp_path / "runs"), "r")
    described = {**PretrainConfig().to_dict(), "store": {"location": store.location}, "also": {"uris": list(URIS)}}
    folder.check_config(described)
    folder.write_config(described)
    experiment = Experiment(Tracking(), folder.runs)
    with _mlflow_run(experiment, None, folder, described, TrainingStores([store]), Console()) as record:
        experiment.start(f"probe of {URIS[0]}", {"checkpoint": URIS[0]}, parent=record.run_id).end()
    for path in (tmp_path / "runs").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert (
        yaml.safe_load(Path(folder.location, "config.yaml").read_text())["store"]["location"] == "memory://bucket/store"
    )
    assert SECRET not in "".join(capsys.readouterr())
    folder.check_config(described)
    folder.check_config({**described, "store": {"location": "memory://OTHER:KEYS@bucket/store"}})
    with pytest.raises(UserError, match="memory://bucket/another"):
        folder.check_config({**described, "store": {"location": f"memory://KEY:{SECRET}@bucket/another"}})


def test_a_configuration_of_an_earlier_version_with_keys_is_continued_and_not_shown(tmp_path):
    folder = RunFolder(str(tmp_path), "r")
    Path(folder.location).mkdir()
    Path(folder.location, "config.yaml").write_text(yaml.safe_dump({"store": {"location": URIS[0]}}))
    folder.check_config({"store": {"location": URIS[0]}})
    with pytest.raises(UserError) as refused:
        folder.check_config({"store": {"location": URIS[3]}, "x": {"y": 1}})
    assert SECRET not in str(refused.value)


def test_the_artifacts_of_runs_at_a_uri_are_recorded_without_its_keys(tmp_path):
    from scale_ray.tracking.mlflow import artifact_root

    root = artifact_root("postgresql://db/mlflow", f"s3://KEY:{SECRET}@bucket/runs?secret_key={SECRET}")
    assert root == "s3://bucket/runs/artifacts"


def test_an_unexpected_error_is_printed_without_keys(tmp_path):
    code = (
        "import sys; from scale_ray.cli import main as command\n"
        f"def fail(*_, **__): raise LookupError('no answer from {URIS[0]}')\n"
        "command.cli.main = fail; command.main(['store', 'x'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "LookupError: no answer from s3://bucket/features" in ended.stderr
    assert SECRET not in ended.stderr


def test_what_is_no_secret_stays():
    for text in (
        "MLflow at http://127.0.0.1:5000/#/experiments?workflowType=machine_learning (Ctrl-C ends it)",
        "sqlite:////tmp/a@b/mlflow.db",
        "hdfs://namenode:8020/videos/a@b",
        "expected s3://bucket/a@b, found a:b@c",
        "file:///C:/a@b",
        "https://[::1]:5000/a",
    ):
        assert str(UserError(text)) == text


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple[str, psutil.Process]]:
    """The address of MLflow's page as `scale-ray ui` serves it, and its process; the file's name is the secret."""
    folder = tmp_path_factory.mktemp("ui")
    uri = f"sqlite:///{folder}/{SECRET}.db"
    Experiment(Tracking(tracking_uri=uri), str(folder))
    port = free_port()
    command = [sys.executable, "-m", "scale_ray", "ui", "--runs", str(folder), "--port", str(port)]
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, stdout=log, stderr=log)
    try:
        end_s = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end_s
            time.sleep(0.5)
        yield f"127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        process.terminate()
        process.wait(20)
        log.close()


@pytest.mark.ray
@pytest.mark.slow
def test_the_database_of_the_page_is_not_in_the_list_of_processes(page):
    address, process = page
    lines = [" ".join(one.cmdline()) for one in [process, *process.children(recursive=True)]]
    assert len(lines) > 1
    assert not [line for line in lines if SECRET in line]
    request = urllib.request.Request(
        f"http://{address}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 10}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # the page shows this database, not another
        assert "scale-ray" in {one["name"] for one in json.load(answer)["experiments"]}


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_does_not_print_the_password_of_its_server(page, capsys):
    address, _ = page
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        Experiment(Tracking(tracking_uri=f"http://me:{SECRET}@{address}"), "unused").start("r", {}).end()
    assert SECRET not in printed.getvalue() + "".join(capsys.readouterr())


def test_the_command_of_the_page_names_no_database(tmp_path):
    uri = f"postgresql://user:{SECRET}@db/mlflow"
    assert SECRET not in " ".join(server_command(Tracking(tracking_uri=uri), str(tmp_path), "127.0.0.1", 5000))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:/S3CRET@bucket/videos",
        "s3://KEY:7/S3CRET@bucket",
        "s3://KEY:a@b/S3CRET@bucket",
        "postgresql://user:p@ss/S3CRET@host/database",
        "s3://bucket/videos?a='x'&key=S3CRET",
        "s3://bucket/videos?key=<S3CRET>",
        "https://host/page#a?token=S3CRET",
    ],
)
def test_an_odd_password_is_not_shown_either(uri):
    for text in (uri, f"found {uri!r}: no answer", f"at {uri}, no answer", f"{uri}\nsecond line"):
        assert "S3CRET" not in redacted(text), text
