"""Every command as a job of a cluster, over HTTP, while a node is killed and one is added."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from support.cluster import SimulatedCluster
from support.command import Ended
from support.jobs import Jobs, Running

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(500)]
MODULES = Path(__file__).parents[1] / "support"
EXTRACT = ("--backbone", "slow_net:net", "--shard-videos", 4, "--clips", 8, "--batch-clips", 4)
SMALL = ("--prediction-hidden", 32, "--target-hidden", 32, "--width", 32, "--layers", 1, "--batch", 8, "--dropout", 0)
PRETRAIN = (*SMALL, "--set-size", 4, "--checkpoint-epochs", 4, "--monitor-epochs", 0)


@pytest.fixture(scope="module")
def extracted(jobs: Jobs, few_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The store of an undisturbed job."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = folder / "store"
    ended = jobs.run(folder, "extract", few_videos, "--store", store, *EXTRACT, module_folder=MODULES)
    return store, ended


def rows_of(folder: Path) -> list[tuple]:
    """All rows of the Parquet files of a folder, in order, with the bytes of their numbers."""
    table = (
        pyarrow.dataset.dataset(sorted(folder.glob("*.parquet")))
        .to_table()
        .sort_by([("video_id", "ascending"), ("mode", "ascending")])
    )
    return [tuple(row.values()) for row in table.to_pylist()]


def disturb(running: Running, cluster: SimulatedCluster, number: int = 0) -> None:
    """Kill a node and add one, while the job runs."""
    cluster.kill(number)
    cluster.add()
    assert running.process.poll() is None, "the job ended before the node was killed"


def num_files(folder: Path, pattern: str = "*.parquet") -> int:
    return len(list(folder.glob(pattern))) if folder.exists() else 0


def test_a_job_reports_as_a_command_does(extracted):
    store, ended = extracted
    assert ended.out.startswith(f"40 of 43 videos are in {store}; 40 videos extracted now\n")
    assert "extract: 43 videos in " in ended.err
    assert "Traceback" not in ended.err
    assert "job_manager" not in ended.err
    assert "Running entrypoint" not in ended.err


def test_extraction_gives_the_same_rows_to_the_byte(jobs, cluster, extracted, few_videos, tmp_path):
    store = tmp_path / "store"
    running = jobs.start(tmp_path, "extract", few_videos, "--store", store, *EXTRACT, module_folder=MODULES)
    running.wait_until(lambda: num_files(store / "features") >= 2)
    disturb(running, cluster)
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert rows_of(store / "features") == rows_of(extracted[0] / "features")


def history(runs: Path, name: str) -> list[dict]:
    return pq.read_table(runs / name / "history.parquet").to_pylist()


@pytest.fixture(scope="module")
def trained(jobs: Jobs, extracted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of an undisturbed pretraining, of run `run`."""
    runs = tmp_path_factory.mktemp("trained")
    jobs.run(runs, "pretrain", "--store", extracted[0], "--runs", runs, "--run", "run", *PRETRAIN, "--epochs", 12)
    return runs


def test_embedding_videos_gives_the_same_vectors_to_the_byte(jobs, cluster, trained, few_videos, tmp_path):
    def arguments(out: str) -> tuple:
        return (
            "embed",
            few_videos,
            "--checkpoint",
            trained / "run",
            "--runs",
            trained,
            "--out",
            tmp_path / out,
            "--shard-videos",
            4,
            "--batch-clips",
            3,
            "--trust-custom-backbone",
            "--send-modules",
            "slow_net",
            "--mode",
            "train",
        )

    jobs.run(tmp_path, *arguments("undisturbed"), module_folder=MODULES)
    running = jobs.start(tmp_path, *arguments("disturbed"), module_folder=MODULES)
    running.wait_until(lambda: num_files(tmp_path / "disturbed" / "vectors") >= 1)
    disturb(running, cluster)
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert rows_of(tmp_path / "disturbed" / "vectors") == rows_of(tmp_path / "undisturbed" / "vectors")


def test_a_sweep_runs_no_finished_trial_twice(jobs, cluster, extracted, tmp_path):
    arguments = ("sweep", "--store", extracted[0], "--runs", tmp_path, "--run", "sweep", *PRETRAIN[:-4])
    arguments += ("--set-size", 4, "--mask-ratio", "0.25,0.5", "--seeds", 3, "--epochs", 150, "--json")
    running = jobs.start(tmp_path, *arguments)
    trials = tmp_path / "sweep" / "trials"
    running.wait_until(lambda: num_files(trials, "*.json") >= 1)
    finished = {path: path.read_bytes() for path in trials.glob("*.json")}
    disturb(running, cluster)
    ended = running.wait()
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert (result["trials"], result["failed"]) == (6, 0)
    assert all(path.read_bytes() == content for path, content in finished.items())


def test_no_log_holds_more_than_progress_and_messages(jobs):
    """The last test: of all jobs so far."""
    logs = jobs.logs()
    assert len(logs) >= 5
    for job, text in logs.items():
        assert "Traceback" not in text, job
        # Ray's two lines at the start, and none of its prefixes of workers.
        chatter = [line for line in text.splitlines()[2:] if "(pid=" in line or " INFO " in line or " WARNING " in line]
        assert not chatter, (job, chatter)
