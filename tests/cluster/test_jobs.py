"""Every command as a job of a cluster, over HTTP, while nodes are killed and added."""

from __future__ import annotations

import json

import pytest
from support.jobs import EXTRACT, MODULES, PRETRAIN, SMALL, files_in, history_of, rows_of

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1200)]


def test_a_job_reports_as_a_command_does(extraction, extracted):
    assert extraction.out.startswith(f"40 of 43 videos are in {extracted}; 40 videos extracted now\n")
    assert "extract: 43 videos in " in extraction.err
    assert "Traceback" not in extraction.err
    assert "job_manager" not in extraction.err
    assert "Running entrypoint" not in extraction.err


def test_extraction_gives_the_same_rows_to_the_byte(jobs, cluster, extracted, few_videos, tmp_path):
    store = tmp_path / "store"
    running = jobs.start(tmp_path, "extract", few_videos, "--store", store, *EXTRACT, module_folder=MODULES)
    running.wait_until(lambda: len(files_in(store / "features")) >= 2)
    cluster.kill()
    cluster.add()
    running.assert_running()
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert rows_of(store / "features") == rows_of(extracted / "features")


def test_pretraining_shrinks_and_grows_with_the_same_losses(jobs, cluster, extracted, trained, tmp_path):
    arguments = ("pretrain", "--store", extracted, "--runs", tmp_path, "--run", "run", *PRETRAIN)
    running = jobs.start(tmp_path, *arguments, "--workers", "1..3", "--resize-s", 3)
    running.wait_until(lambda: (tmp_path / "run" / "checkpoints" / "checkpoint_manager_snapshot.json").exists())
    # The two that are left have no room for three workers.
    cluster.kill()
    cluster.kill()
    running.wait_until(lambda: "on 2 workers" in running.err.read_text())
    cluster.add()
    cluster.add()
    running.wait_until(lambda: "on 3 workers" in running.err.read_text())
    ended = running.wait()
    assert ended.code == 0, ended.err
    losses, expected = ([row["loss"] for row in history_of(runs, "run")] for runs in (tmp_path, trained))
    assert losses == pytest.approx(expected, abs=1e-5)


def test_embedding_videos_gives_the_same_vectors_to_the_byte(jobs, cluster, trained, few_videos, tmp_path):
    def arguments(out: str) -> tuple:
        options = ("--shard-videos", 4, "--batch-clips", 4, "--mode", "train")
        module = ("--trust-custom-backbone", "--send-modules", "slow_net")
        run = ("--checkpoint", trained / "run", "--runs", trained, "--out", tmp_path / out)
        return ("embed", few_videos, *run, *options, *module)

    jobs.run(tmp_path, *arguments("undisturbed"), module_folder=MODULES)
    running = jobs.start(tmp_path, *arguments("disturbed"), module_folder=MODULES)
    running.wait_until(lambda: files_in(tmp_path / "disturbed" / "vectors"))
    cluster.kill()
    cluster.add()
    running.assert_running()
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert rows_of(tmp_path / "disturbed" / "vectors") == rows_of(tmp_path / "undisturbed" / "vectors")


def test_a_sweep_runs_no_finished_trial_twice(jobs, cluster, extracted, tmp_path):
    space = ("--set-size", 4, "--mask-ratio", "0.25,0.5", "--seeds", 3, "--epochs", 150)
    running = jobs.start(
        tmp_path, "sweep", "--store", extracted, "--runs", tmp_path, "--run", "sweep", *SMALL, *space, "--json"
    )
    trials = tmp_path / "sweep" / "trials"
    running.wait_until(lambda: files_in(trials, "*.json"))
    finished = {path: path.read_bytes() for path in files_in(trials, "*.json")}
    cluster.kill()
    cluster.add()
    running.assert_running()
    ended = running.wait()
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert (result["trials"], result["failed"]) == (6, 0)
    assert all(path.read_bytes() == content for path, content in finished.items())


def test_a_pipeline_survives_a_node_in_its_training(jobs, cluster, few_videos, tmp_path):
    options = (*EXTRACT, *PRETRAIN, "--epochs", 30, "--probe-epochs", 1, "--probe-min-steps", 5, "--probes", "knn")
    arguments = ("pipeline", few_videos, "--store", tmp_path / "store", "--runs", tmp_path, "--run", "run", *options)
    running = jobs.start(tmp_path, *arguments, module_folder=MODULES)
    running.wait_until(lambda: (tmp_path / "run" / "checkpoints" / "checkpoint_manager_snapshot.json").exists())
    cluster.kill()
    cluster.add()
    running.assert_running()
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert "k-NN" in ended.out or "knn" in ended.out
    assert len(history_of(tmp_path, "run")) == 30


def test_probes_run_as_a_job_without_any_node(jobs, cluster, extracted, trained, tmp_path):
    options = ("--probe-epochs", 1, "--probe-min-steps", 5, "--probes", "knn,linear", "--json")
    arguments = ("probe", "--store", extracted, "--checkpoint", "run", "--runs", trained, *options)
    running = jobs.start(tmp_path, *arguments, "--out", tmp_path)
    running.job_id()
    cluster.kill()
    ended = running.wait()
    cluster.add()
    assert ended.code == 0, ended.err
    assert "knn" in json.dumps(json.loads(ended.out))
    assert (tmp_path / "results.csv").exists() or files_in(tmp_path, "results*")


def test_no_log_holds_more_than_progress_and_messages(jobs):
    """The last test: of all jobs so far."""
    logs = jobs.logs()
    assert len(logs) >= 5
    for job, text in logs.items():
        assert "Traceback" not in text, job
        # After Ray's two lines at the start, and without its prefixes of workers.
        chatter = [line for line in text.splitlines()[2:] if "(pid=" in line or " INFO " in line or " WARNING " in line]
        assert not chatter, (job, chatter)
