"""Sweeps: every trial is run and recorded once, whatever is killed; a sweep that grows runs what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster
from support.command import Command
from support.servers import forwarding, free_port, serving
from support.stores import make_store

import scale_ray as sr
from scale_ray.aggregator import Aggregator
from scale_ray.config import SweepConfig
from scale_ray.search import key_of

# Ray, in this process, warns about its own settings.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(500), pytest.mark.filterwarnings("ignore")]
SMALL = ("--prediction-hidden", 32, "--target-hidden", 32, "--width", 32, "--layers", 1, "--batch", 16)
GRID = (*SMALL, "--set-size", "2,4", "--mask-ratio", "0.25,0.5", "--seeds", 2, "--folds", 2, "--cpus", 2)
TITLE = "TrialProcess"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty videos of two classes in ten groups."""
    rng = np.random.default_rng(0)
    ids = [f"video-{number:02d}" for number in range(60)]
    means = {"a": rng.normal(size=16), "b": rng.normal(size=16)}
    labels = ["ab"[number % 2] for number in range(60)]
    features = {i: means[label] + 2 * rng.normal(size=(16, 16)) for i, label in zip(ids, labels, strict=True)}
    groups = [f"group-{number // 6}" for number in range(60)]
    made = make_store(
        tmp_path_factory.mktemp("sweeps") / "store", features, sides=["train"] * 60, label=labels, groups=groups
    )
    return Path(made.location)


def started(store: Path, runs: Path, *arguments: object) -> subprocess.Popen[str]:
    words = ["sweep", "--store", store, "--runs", runs, *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "scale_ray", *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def results(runs: Path) -> dict[str, dict[str, Any]]:
    """The results of all trials, by key."""
    return {path.stem: json.loads(path.read_text()) for path in (runs / "sweep" / "trials").glob("*.json")}


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"the sweep ended before the fault: {process.stderr.read()}"
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def trial_processes(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the driver's Ray that train trials."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if TITLE in " ".join(process.cmdline()):
                found.append(process)
    return found


def recorded(runs: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None = None) -> tuple[Any, list[Any]]:
    """The parent run in MLflow, and its children."""
    # Not set_tracking_uri: it would hold for the tests that follow.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri or f"sqlite:///{runs}/mlflow.db")
    found = mlflow.search_runs(experiment_names=["scale-ray"], output_format="list")
    [parent] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(found) == len(children) + 1
    return parent, children


def test_a_failed_trial_is_recorded_and_a_grown_sweep_runs_what_is_missing(
    scale_ray: Command, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    common = ("sweep", "--store", store, "--runs", tmp_path, *SMALL, "--epochs", 4, "--folds", 2, "--cpus", 2)
    common = (*common, "--mask-ratio", 0.25)
    ended = scale_ray(*common, "--set-size", 4, "--learning-rate", "1e-3,1e20", "--seeds", 1)
    assert ended.code == 3, ended.err
    assert "1 trial failed: trial on node" in ended.out
    assert "loss is nan" in ended.out
    assert "best setting: --learning-rate 0.001" in ended.out
    before = results(tmp_path)
    assert sorted(result["state"] for result in before.values()) == ["failed", "finished"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "trials").iterdir()}

    # With two workers per trial: those of one that failed must not hold up the next.
    grown = ("--set-size", "2,4", "--learning-rate", "1e-3,1e20", "--seeds", 2, "--workers", 2)
    ended = scale_ray(*common, *grown)
    assert ended.code == 3, ended.err
    assert "4 settings, 8 trials, 7 of them now" in ended.out
    after = results(tmp_path)
    assert len(after) == 8
    for path, time_ns in times.items():
        kept = before[path.stem]["state"] == "finished"
        assert (path.stat().st_mtime_ns == time_ns) == kept, "only the failed trial was run again"
    config = SweepConfig().replaced(
        mask_ratio=0.25,
        set_size=(2, 4),
        learning_rate=(1e-3, 1e20),
        epochs=4,
        batch=16,
        prediction_hidden=32,
        target_hidden=32,
        width=32,
        layers=1,
    )
    assert set(after) == {
        key_of(config, {"sets.set_size": size, "training.learning_rate": rate}, seed)
        for size in (2, 4)
        for rate in (1e-3, 1e20)
        for seed in (0, 1)
    }
    parent, children = recorded(tmp_path, monkeypatch)
    states = sorted((run.data.tags["scale_ray.state"], run.info.status) for run in children)
    assert states == [("failed", "FAILED")] * 5 + [("finished", "FINISHED")] * 4
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["scale_ray.best.learning_rate"] == "0.001"
    assert all(run.data.metrics["seconds"] > 0 for run in children if run.info.status == "FINISHED")

    ended = scale_ray("pretrain", "--store", store, "--runs", tmp_path, "--run", "best", "--cpus", 2, "--workers", 1,
                      "--config", tmp_path / "sweep" / "best.yaml")  # fmt: skip
    assert ended.code == 0, ended.err


def test_a_killed_trial_is_repeated_and_a_killed_driver_continues(
    scale_ray: Command, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = (*GRID, "--epochs", 60)
    seen: dict[str, dict[str, Any]] = {}
    for num_results in (0, 2, 4):
        driver = started(store, tmp_path, *options)
        found: list[psutil.Process] = []
        wait_until(lambda num=num_results: len(results(tmp_path)) >= num, driver)
        wait_until(lambda found=found: found.extend(trial_processes(driver)) or found, driver)  # noqa: B023
        with suppress(psutil.NoSuchProcess):
            found[0].kill()
        time.sleep(1)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.wait()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert all(results(tmp_path)[key] == result for key, result in seen.items()), (
            "a finished trial is not run again"
        )
        seen = results(tmp_path)
    ended = scale_ray(*("sweep", "--store", store, "--runs", tmp_path, *options))
    assert ended.code == 0, ended.err
    final = results(tmp_path)
    assert len(final) == 8
    assert {result["state"] for result in final.values()} == {"finished"}
    assert all(final[key] == result for key, result in seen.items())
    _, children = recorded(tmp_path, monkeypatch)
    statuses = [run.info.status for run in children]
    assert statuses.count("FINISHED") == 8, "each trial is recorded once"
    assert set(statuses) <= {"FINISHED", "KILLED"}, "what the killed drivers left is ended"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_a_node_that_is_lost_costs_its_trials_one_attempt(
    cluster: Cluster, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    driver = started(store, tmp_path, *GRID[:-2], "--epochs", 60, "--address", cluster.address)
    wait_until(lambda: len(results(tmp_path)) >= 2, driver)
    cluster.remove_node(nodes[1], allow_graceful=False)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert " is repeated: " in err
    assert "4 settings, 8 trials, 8 of them now" in out
    assert {result["state"] for result in results(tmp_path).values()} == {"finished"}
    _, children = recorded(tmp_path, monkeypatch)
    assert [run.info.status for run in children] == ["FINISHED"] * 8


def test_a_tracking_server_that_is_away_gets_everything_later(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    port, behind = free_port(), free_port()
    server = (
        "server",
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--host",
        "127.0.0.1",
        "--workers",
        "1",
    )
    server = (*server, "--port", str(behind), "--default-artifact-root", f"{tmp_path}/artifacts")
    uri = f"http://127.0.0.1:{port}"
    with serving("mlflow", *server, port=behind, within_s=120):
        with forwarding(port, behind):
            driver = started(store, tmp_path, *GRID, "--epochs", 60, "--tracking-uri", uri)
            wait_until(lambda: results(tmp_path), driver)
        time.sleep(20)
        with forwarding(port, behind):
            _, err = driver.communicate(timeout=300)
        assert driver.returncode == 0, err
        assert "does not answer" in err
        assert "MLflow does not have" not in err
        parent, children = recorded(tmp_path, monkeypatch, f"http://127.0.0.1:{behind}")
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 9
    assert {run.data.metrics["objective"] for run in children} == {
        sum(right for right, _ in result["blocks"]) / sum(videos for _, videos in result["blocks"])
        for result in results(tmp_path).values()
    }


def test_the_python_result_has_the_trials_of_ray_tune_and_the_promoted_setting(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = sr.sweep(
        str(store),
        runs=str(tmp_path),
        set_size=(2, 4),
        mask_ratio=0.25,
        learning_rate=sr.log_uniform(1e-4, 1e-2),
        trials=3,
        seeds=1,
        epochs=10,
        batch=16,
        width=32,
        layers=1,
        cpus=2,
        prediction_hidden=32,
        target_hidden=32,
        search="optuna",
        workers="2",
        quiet=True,
        promote=True,
        promote_epochs=2,
    )
    assert type(found.result_grid).__name__ == "ResultGrid"
    assert len(found.result_grid) == len(found.trials) == 3
    assert not found.result_grid.errors
    table = found.to_pandas()
    assert list(table)[:3] == ["set_size", "learning_rate", "objective"]
    assert len(table) == 3
    assert (tmp_path / "sweep" / "optuna.db").stat().st_size > 0
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "learning_rate" in page
    assert len(found.pictures()) >= 4
    assert found.promoted is not None
    assert Aggregator.load(found.promoted.aggregator).options.width == 32
    assert len(found.promoted.folder.history()) == 2
    assert found.probes is None, "this store has no test videos"
    parent, children = recorded(tmp_path, monkeypatch)
    assert found.promoted.folder.mlflow_run() in {run.info.run_id for run in children}
    [version] = mlflow.MlflowClient().search_model_versions("name = 'sweep'")
    assert version.run_id == found.promoted.folder.mlflow_run()
    assert parent.info.status == "FINISHED"
