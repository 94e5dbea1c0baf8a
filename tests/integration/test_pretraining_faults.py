"""Pretraining under faults: it resumes exactly or ends with a one-line error, and no earlier checkpoint is lost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.train.v2.api.exceptions
from ray.train.torch import TorchTrainer
from support.command import Command, Ended

import scale_ray as sr
from scale_ray.clips import VideoGeometry
from scale_ray.corpus.corpus import VIDEO_COLUMNS
from scale_ray.errors import RunFailed
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]
SMALL = ("--prediction-hidden", 32, "--target-hidden", 32, "--width", 32, "--layers", 1, "--batch", 8)
# With five steps per epoch, checkpoints are saved within epochs.
RUN = (*SMALL, "--epochs", 24, "--checkpoint-steps", 12, "--checkpoint-epochs", 0, "--monitor-epochs", 8)
NUM_STEPS = 24 * 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty videos in four shards, of two classes."""
    rng = np.random.default_rng(0)
    store = FeatureStore.create(
        str(tmp_path_factory.mktemp("faults") / "store"), {"backbone": "b", "weights": "w", "sampling": {}}
    )
    ids = [f"video-{number:02d}" for number in range(40)]
    for start in range(0, 40, 10):
        videos = [
            VideoFeatures(
                video_id,
                (rng.normal(size=(1, 16)) + 0.3 * rng.normal(size=(16, 16))).astype(np.float16),
                rng.random((16, 7), dtype=np.float32),
                VideoGeometry(120, 160, 4.0, 30.0),
            )
            for video_id in ids[start : start + 10]
        ]
        store.commit(store.part_name("train", [video.video_id for video in videos]), "train", videos)
    rows = [
        {"video_id": video_id, "path": video_id, "label": "ab"[number % 2], "splits": [("default", "train")]}
        for number, video_id in enumerate(ids)
    ]
    store.replace_videos(pa.Table.from_pylist(rows, schema=pa.schema(list(VIDEO_COLUMNS))))
    return Path(store.location)


def arguments(store: Path, runs: Path, name: str) -> list[str]:
    return [str(word) for word in ("pretrain", "--store", store, "--runs", runs, "--run", name, *RUN)]


def started(store: Path, runs: Path, name: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "scale_ray", *arguments(store, runs, name)], stderr=subprocess.PIPE, text=True
    )


def history(runs: Path, name: str) -> list[dict]:
    rows = pq.read_table(runs / name / "history.parquet").to_pylist()
    return [{k: v for k, v in row.items() if not k.endswith("_per_s") and k != "memory_mib"} for row in rows]


def checkpoints(runs: Path, name: str) -> list[Path]:
    """The folders of all complete checkpoints, oldest first."""
    snapshot = runs / name / "checkpoints" / "checkpoint_manager_snapshot.json"
    text = snapshot.read_text() if snapshot.exists() else ""
    if not text:  # Ray empties the file before it writes it anew
        return []
    try:
        results = json.loads(text)["checkpoint_results"]
    except json.JSONDecodeError:  # read while it was being written
        return []
    return [snapshot.parent / result["checkpoint_dir_name"] for result in results]


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline_s = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"the run ended before the fault: {process.stderr.read()}"
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    """The processes of a run that train."""
    children = psutil.Process(driver.pid).children(recursive=True)
    workers = [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]
    assert workers
    return workers


@pytest.fixture(scope="module")
def undisturbed(store: Path, scale_ray: Command, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    runs = tmp_path_factory.mktemp("undisturbed")
    ended = scale_ray(*arguments(store, runs, "run"))
    assert ended.code == 0, ended.err
    epochs = history(runs, "run")
    assert len(epochs) == 24
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert "monitor_knn_top1" in epochs[7]
    return epochs


def test_a_killed_worker_is_replaced_and_nothing_changes(store, undisturbed, tmp_path):
    driver = started(store, tmp_path, "run")
    wait_until(lambda: len(checkpoints(tmp_path, "run")) == 2, driver)
    workers_of(driver)[-1].kill()
    _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, errors
    assert history(tmp_path, "run") == undisturbed


def test_a_killed_driver_and_a_checkpoint_cut_in_half_change_nothing(store, scale_ray, undisturbed, tmp_path):
    driver = started(store, tmp_path, "run")
    wait_until(lambda: len(checkpoints(tmp_path, "run")) == 2, driver)
    children, workers = psutil.Process(driver.pid).children(recursive=True), workers_of(driver)
    driver.kill()
    driver.wait()
    driver.stderr.close()
    psutil.wait_procs(workers, timeout=60)  # a worker that outlives the driver may still be writing
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    _, newest = checkpoints(tmp_path, "run")
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    ended: Ended = scale_ray(*arguments(store, tmp_path, "run"))
    assert ended.code == 0, ended.err
    assert f"checkpoint {newest.name} cannot be read" in ended.err
    assert "resuming from the one before it" in ended.err
    assert history(tmp_path, "run") == undisturbed


# Ray, in this process, warns about its own settings.
@pytest.mark.filterwarnings("ignore")
def test_workers_that_are_lost_while_they_start_are_started_again(store, undisturbed, tmp_path, monkeypatch, capsys):
    lost = ray.exceptions.ActorUnavailableError("the node of a worker died", b"0" * 16)
    starts = []

    def fit(trainer):
        starts.append(trainer)
        if len(starts) < 3:
            raise ray.train.v2.api.exceptions.ControllerError(lost)
        return original(trainer)

    original = TorchTrainer.fit
    monkeypatch.setattr(TorchTrainer, "fit", fit)
    options = dict(zip((word.strip("-").replace("-", "_") for word in RUN[::2]), RUN[1::2], strict=True))
    sr.pretrain(str(store), "run", runs=str(tmp_path), **options)
    assert len(starts) == 3
    assert history(tmp_path, "run") == undisturbed
    assert capsys.readouterr().err.count("the workers are started again: a training worker died: ") == 2
    starts.clear()
    with pytest.raises(RunFailed, match="a training worker died"):
        sr.pretrain(str(store), "other", runs=str(tmp_path), **options, max_restarts=1)
    assert len(starts) == 2


def test_a_damaged_shard_is_named_in_one_line(store, scale_ray, tmp_path):
    part = sorted((store / "features").iterdir())[1]
    intact = part.read_bytes()
    part.write_bytes(intact[:200] + bytes(byte ^ 255 for byte in intact[200:400]) + intact[400:])
    try:
        ended = scale_ray(*arguments(store, tmp_path, "run"))
    finally:
        part.write_bytes(intact)
    assert ended.code == 2, ended.err
    [line] = [line for line in ended.err.splitlines() if line.startswith("Error")]
    assert f"{part.name}: expected a whole shard, found one that cannot be read" in line
    assert "Traceback" not in ended.err


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_saved(store, scale_ray, undisturbed, tmp_path):
    """On a small file system, which is filled during the training."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let the tests mount a small file system")
    database = f"sqlite:///{tmp_path}/mlflow.db"
    try:
        os.environ["MLFLOW_TRACKING_URI"] = database
        driver = started(store, small, "run")
        wait_until(lambda: checkpoints(small, "run"), driver)
        filler = os.open(small / "filler", os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
        _, errors = driver.communicate(timeout=300)
        assert driver.returncode == 1, errors
        [line] = [line for line in errors.splitlines() if line.startswith("Error")]
        assert "No space left on device" in line
        assert "Traceback" not in errors
        assert all((folder / "state.pt").exists() for folder in checkpoints(small, "run"))
        (small / "filler").unlink()
        ended = scale_ray(*arguments(store, small, "run"))
        assert ended.code == 0, ended.err
        assert history(small, "run") == undisturbed
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_an_elastic_run_takes_what_the_cluster_has(store, scale_ray, tmp_path):
    ended = scale_ray(
        *(
            "pretrain",
            "--store",
            store,
            "--runs",
            tmp_path,
            "--run",
            "elastic",
            *SMALL,
            "--epochs",
            2,
            "--workers",
            "1..2",
        )
    )
    assert ended.code == 0, ended.err
    assert "with 1..2 workers" in ended.err
    assert len(history(tmp_path, "elastic")) == 2
