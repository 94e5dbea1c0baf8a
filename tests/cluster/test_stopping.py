"""A job that is stopped, left alone or loses its head, and is submitted again."""

from __future__ import annotations

import re
import time

import pytest
from support.cluster import SimulatedCluster
from support.jobs import EXTRACT, MODULES, PRETRAIN, Jobs, files_in, history_of, rows_of

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1200)]


def wait_for_state(jobs: Jobs, job_id: str, state: str, within_s: float = 120) -> None:
    end_s = time.monotonic() + within_s
    while (found := jobs.client().get_job_status(job_id).value) != state:
        assert time.monotonic() < end_s, f"the job is {found}"
        time.sleep(0.5)


def test_a_stopped_extraction_ends_at_a_shards_edge_and_continues(jobs, extracted, few_videos, tmp_path):
    store = tmp_path / "store"
    arguments = ("extract", few_videos, "--store", store, *EXTRACT)
    running = jobs.start(tmp_path, *arguments, module_folder=MODULES)
    running.wait_until(lambda: files_in(store / "features"))
    jobs.client().stop_job(running.job_id())
    ended = running.wait()
    assert ended.code == 130
    assert ended.err.splitlines()[-2:] == [
        "Stopped. Committed results are kept; the same command resumes from there.",
        "the job was stopped; the same command resumes it",
    ]
    before = {path: path.read_bytes() for path in files_in(store / "features")}
    assert 0 < len(before) < len(files_in(extracted / "features"))
    jobs.run(tmp_path, *arguments, module_folder=MODULES)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert rows_of(store / "features") == rows_of(extracted / "features")


def test_a_stopped_pretraining_saves_a_checkpoint_and_continues(jobs, extracted, trained, tmp_path):
    arguments = ("pretrain", "--store", extracted, "--runs", tmp_path, "--run", "run", *PRETRAIN)
    # Without any other checkpoint.
    arguments += ("--checkpoint-epochs", 0)
    running = jobs.start(tmp_path, *arguments)
    running.wait_until(lambda: re.search(r"epochs, [\d.]+/s", running.err.read_text()))
    jobs.client().stop_job(running.job_id())
    ended = running.wait()
    assert ended.code == 130, ended.err
    assert "; a checkpoint is saved" in ended.err
    ended = jobs.run(tmp_path, *arguments)
    # It continues where it stopped, not from the first step.
    assert history_of(tmp_path, "run") == history_of(trained, "run")


def test_ctrl_c_leaves_the_job_running_and_says_how_to_follow_it(jobs, extracted, tmp_path):
    running = jobs.start(tmp_path, "store", extracted, "--verify")
    job_id = running.job_id()
    running.interrupt()
    ended = running.wait()
    assert ended.code == 130
    address = jobs.cluster.jobs
    assert ended.err.splitlines()[-1] == (
        f"The job continues. Follow it: ray job logs --follow --address {address} {job_id}; "
        f"stop it: ray job stop --address {address} {job_id}"
    )
    wait_for_state(jobs, job_id, "SUCCEEDED")


def test_the_exit_code_is_that_of_the_job(jobs, tmp_path):
    ended = jobs.start(tmp_path, "store", tmp_path / "nowhere").wait()
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("Error: expected a feature store")
    assert ended.out == ""


def test_a_head_that_dies_is_one_line_and_the_same_command_continues_on_a_new_one(
    jobs, extracted, few_videos, tmp_path
):
    store = tmp_path / "store"
    arguments = ("extract", few_videos, "--store", store, *EXTRACT)
    first = SimulatedCluster(1)
    try:
        running = Jobs(first).start(tmp_path, *arguments, module_folder=MODULES)
        running.wait_until(lambda: files_in(store / "features"))
    finally:
        first.close()
    ended = running.wait()
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(f"Error: the connection to {first.jobs} was lost")
    assert "Traceback" not in ended.err
    before = {path: path.read_bytes() for path in files_in(store / "features")}
    jobs.run(tmp_path, *arguments, module_folder=MODULES)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert rows_of(store / "features") == rows_of(extracted / "features")
