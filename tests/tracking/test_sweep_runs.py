"""The runs of a sweep in MLflow as `mlflow.search_runs` finds them, also after an interruption or a lost connection."""

import time
from dataclasses import replace

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from support.sweeps import trial

from scale_ray.config import Tracking
from scale_ray.distributed.trial_records import record_end, record_missing
from scale_ray.search import FAILED, FINISHED, STOPPED
from scale_ray.tracking import Experiment, outbox, run_record

SETTINGS = [{"sets.set_size": 4, "sets.mask_ratio": ratio} for ratio in (0.15, 0.25, 0.5)]
FINISHED_TRIAL = trial(SETTINGS[0], 0, 0.6, began_s=1_000_000.0)
STOPPED_TRIAL = trial(SETTINGS[1], 1, 0.3, STOPPED, epochs=8, began_s=1_000_100.0)
FAILED_TRIAL = trial(SETTINGS[2], 2, float("nan"), FAILED)


@pytest.fixture
def experiment(tmp_path):
    return Experiment(Tracking(experiment="sweeps"), str(tmp_path))


def search(experiment, **query):
    # Not set_tracking_uri: it would hold for the tests that follow.
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", experiment.uri)
        return mlflow.search_runs(experiment_names=["sweeps"], **query).set_index("tags.mlflow.runName")


def children_of(experiment, parent):
    """A table of the children of a run, by run name."""
    return search(experiment, filter_string=f"tags.`mlflow.parentRunId` = '{parent.run_id}'")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """An experiment with a sweep of three trials, which only reading tests share."""
    experiment = Experiment(Tracking(experiment="sweeps"), str(tmp_path_factory.mktemp("runs")))
    with experiment.start("sweep", {}) as parent:
        record_missing(experiment, parent, [FINISHED_TRIAL, STOPPED_TRIAL, FAILED_TRIAL], [])
    return experiment, children_of(experiment, parent)


@pytest.fixture
def recorded(sweep):
    return sweep[1]


def test_children_have_options_objective_duration_and_state(recorded):
    assert sorted(recorded.index) == [
        "set_size 4, mask_ratio 0.15, seed 0",
        "set_size 4, mask_ratio 0.25, seed 1",
        "set_size 4, mask_ratio 0.5, seed 2",
    ]
    rows = recorded.sort_index()
    assert list(rows["params.sets.set_size"]) == ["4", "4", "4"]
    assert list(rows["params.sets.mask_ratio"]) == ["0.15", "0.25", "0.5"]
    assert list(rows["params.seed"]) == ["0", "1", "2"]
    assert list(rows["metrics.objective"][:2]) == [FINISHED_TRIAL.value, STOPPED_TRIAL.value]
    assert np.isnan(rows["metrics.objective"].iloc[2])
    assert list(rows["metrics.seconds"]) == [60.0, 48.0, 5.0]
    assert list(rows["metrics.epochs"]) == [20, 8, 0]
    assert list(rows["tags.scale_ray.state"]) == [FINISHED, STOPPED, FAILED]
    assert list(rows["status"]) == ["FINISHED", "FINISHED", "FAILED"]
    assert rows["tags.scale_ray.reason"].iloc[2] == "out of memory"


def test_a_child_says_in_its_description_that_it_did_not_run_to_the_end(recorded):
    rows = recorded.sort_index()["tags.mlflow.note.content"]
    assert list(rows.dropna()) == ["stopped early after 8 epochs", "failed after 0 epochs: out of memory"]


def test_a_child_has_the_times_of_its_trial_though_it_is_recorded_later(recorded):
    rows = recorded.sort_index()
    assert [time.timestamp() for time in rows["start_time"][:2]] == [1_000_000.0, 1_000_100.0]
    assert [length.total_seconds() for length in (rows["end_time"] - rows["start_time"])[:2]] == [60.0, 48.0]


def test_the_curve_has_a_point_per_epoch_and_the_objective_one(sweep):
    experiment, recorded = sweep
    run_id = recorded.loc["set_size 4, mask_ratio 0.15, seed 0", "run_id"]
    client = mlflow.MlflowClient(experiment.uri)
    curve = client.get_metric_history(run_id, "validation_knn_top1")
    assert {(point.step, point.value) for point in curve} == {(epoch, value) for epoch, value in FINISHED_TRIAL.curve}
    # MLflow's page compares runs by bars only if the single point is of step 0.
    assert [point.step for point in client.get_metric_history(run_id, "objective")] == [0]


def test_children_can_be_sorted_by_their_objective(sweep):
    assert list(search(sweep[0], order_by=["metrics.objective DESC"]).index) == [
        "set_size 4, mask_ratio 0.15, seed 0",
        "set_size 4, mask_ratio 0.25, seed 1",
        "set_size 4, mask_ratio 0.5, seed 2",
        "sweep",
    ]


def test_children_that_an_interrupted_command_left_running_are_killed_and_no_others(experiment):
    parent = experiment.start("sweep", {})
    other = experiment.start("other sweep", {})
    for record, name in ((parent, "left"), (other, "of another sweep")):
        experiment.start_later(name, {"seed": 0}, parent=record)
    record_missing(experiment, parent, [FINISHED_TRIAL, FAILED_TRIAL], [])
    assert parent.settle()
    assert children_of(experiment, parent).loc["left", "status"] == "RUNNING"

    again = experiment.resume(parent.run_id)
    experiment.end_children(again)
    assert again.settle()
    states = children_of(experiment, parent)["status"]
    assert dict(states) == {
        "left": "KILLED",
        "set_size 4, mask_ratio 0.15, seed 0": "FINISHED",
        "set_size 4, mask_ratio 0.5, seed 2": "FAILED",
    }
    assert dict(children_of(experiment, other)["status"]) == {"of another sweep": "RUNNING"}
    again.end()
    other.end()


def test_trials_whose_command_was_killed_before_mlflow_had_them_are_recorded_once(experiment):
    parent = experiment.start("sweep", {})
    results = [FINISHED_TRIAL, STOPPED_TRIAL, FAILED_TRIAL]
    # The same trial as the second one failed in an earlier attempt; the third one's end did not reach MLflow.
    record_missing(experiment, parent, [FINISHED_TRIAL, replace(STOPPED_TRIAL, state=FAILED)], [])
    experiment.start_later("left", {**FAILED_TRIAL.setting, "seed": FAILED_TRIAL.seed}, parent=parent)
    assert parent.settle()
    for _ in range(2):
        again = experiment.resume(parent.run_id)
        record_missing(experiment, again, results, experiment.end_children(again))
        again.end()
    rows = children_of(experiment, parent)
    assert sorted(zip(rows.index, rows["status"], strict=True)) == [
        ("left", "KILLED"),
        ("set_size 4, mask_ratio 0.15, seed 0", "FINISHED"),
        ("set_size 4, mask_ratio 0.25, seed 1", "FAILED"),
        ("set_size 4, mask_ratio 0.25, seed 1", "FINISHED"),
        ("set_size 4, mask_ratio 0.5, seed 2", "FAILED"),
    ]


def test_tags_and_times_survive_an_mlflow_that_is_away(experiment, monkeypatch, capsys):
    def fails(*_, **__):
        raise MlflowException("(sqlite3.OperationalError) database is locked\n[SQL: INSERT INTO tags]")

    monkeypatch.setattr(outbox, "_SILENT_S", 0.2)
    monkeypatch.setattr(run_record, "_FLUSH_S", 0.0)
    with experiment.start("sweep", {}) as parent:
        with monkeypatch.context() as patched:
            patched.setattr(mlflow.MlflowClient, "log_batch", fails)
            patched.setattr(mlflow.MlflowClient, "create_run", fails)
            parent.tags({"best.set_size": 4})
            parent.tags({"best.set_size": 8})  # the later one stays
            parent.describe("**Best setting: set\\_size 8**")
            child = experiment.start_later("child", {"sets.set_size": 8}, parent=parent)
            record_end(child, FINISHED_TRIAL)
            said = ""
            while "does not answer (database is locked)" not in said:
                said += capsys.readouterr().err
            away_until_s = time.time()
        assert child.run_id == ""
    run = mlflow.MlflowClient(experiment.uri).get_run(parent.run_id)
    assert run.data.tags["scale_ray.best.set_size"] == "8"
    assert run.data.tags["mlflow.note.content"] == "**Best setting: set\\_size 8**"
    [row] = [row for _, row in children_of(experiment, parent).iterrows()]
    assert (row["tags.scale_ray.state"], row["metrics.objective"]) == (FINISHED, FINISHED_TRIAL.value)
    assert row["start_time"].timestamp() <= row["end_time"].timestamp() <= away_until_s
    assert "does not have" not in capsys.readouterr().err


def test_times_that_cannot_be_are_not_taken_from_a_file(experiment):
    strange = replace(FINISHED_TRIAL, began_s=2.0**53, seconds=2.0**53)
    began_s = time.time()
    with experiment.start("sweep", {}) as parent:
        record_missing(experiment, parent, [strange], [])
    [row] = [row for _, row in children_of(experiment, parent).iterrows()]
    assert began_s - 1 < row["start_time"].timestamp() <= row["end_time"].timestamp() < time.time() + 1


def test_a_very_long_reason_costs_no_tag(experiment):
    long = replace(FAILED_TRIAL, reason="x" * 20_000)
    with experiment.start("sweep", {}) as parent:
        record_missing(experiment, parent, [long], [])
    [state] = children_of(experiment, parent)["tags.scale_ray.state"]
    assert state == FAILED
