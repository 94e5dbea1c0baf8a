"""An MLflow that is away: nothing waits for it but the end of the run, and nothing is lost in silence."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from support.servers import forwarding, free_port, serving

from scale_ray.config import Tracking
from scale_ray.errors import RunFailed, UserError
from scale_ray.tracking import outbox, run_record
from scale_ray.tracking.mlflow import Experiment

LOCKED = MlflowException("(sqlite3.OperationalError) database is locked\n[SQL: INSERT INTO metrics]")


@pytest.fixture
def short(monkeypatch) -> None:
    monkeypatch.setattr(run_record, "_FLUSH_S", 0.0)
    monkeypatch.setattr(run_record, "PATIENCE_S", 1.0)
    monkeypatch.setattr(run_record, "_PATIENCE_AFTER_FAILURE_S", 0.5)
    monkeypatch.setattr(outbox, "_SILENT_S", 0.2)


def away(monkeypatch, *names: str) -> None:
    def fails(*_: object, **__: object) -> None:
        raise LOCKED

    for name in names:
        monkeypatch.setattr(mlflow.MlflowClient, name, fails)


def losses(experiment: Experiment, run_id: str) -> list[float]:
    history = mlflow.MlflowClient(experiment.uri).get_metric_history(run_id, "loss")
    return [point.value for point in sorted(history, key=lambda point: point.step)]


def test_points_of_a_time_without_an_answer_are_written_later(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_record, "PATIENCE_S", 60.0)
    experiment = Experiment(Tracking(), str(tmp_path))
    with experiment.start("r", {}) as record:
        with monkeypatch.context() as patched:
            away(patched, "log_batch")
            began_s = time.monotonic()
            for epoch in range(2500):
                record.metrics({"loss": epoch}, epoch)
            assert time.monotonic() - began_s < 2, "training never waits for MLflow"
            while "does not answer" not in (said := capsys.readouterr().err):
                time.sleep(0.05)
        assert "does not answer (database is locked)" in said
    assert losses(experiment, record.run_id) == list(range(2500))
    assert "answers again" in (said := capsys.readouterr().err)
    assert "does not have" not in said
    assert mlflow.MlflowClient(experiment.uri).get_run(record.run_id).info.status == "FINISHED"


def test_a_call_holds_at_most_a_thousand_points(short, tmp_path, monkeypatch):
    sizes: list[int] = []
    real = mlflow.MlflowClient.log_batch

    def counted(client, run_id, metrics=(), **others):
        sizes.append(len(metrics))
        return real(client, run_id, metrics=metrics, **others)

    monkeypatch.setattr(run_record, "_FLUSH_S", 60.0)
    experiment = Experiment(Tracking(), str(tmp_path))
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
    with experiment.start("r", {}) as record:
        for epoch in range(2500):
            record.metrics({"loss": epoch}, epoch)
    assert [size for size in sizes if size] == [1000, 1000, 500]


def test_what_mlflow_lacks_at_the_end_is_one_line(short, tmp_path, monkeypatch, capsys):
    experiment = Experiment(Tracking(), str(tmp_path))
    with experiment.start("r", {}, also_in="history.parquet has all") as record:
        record.metrics({"loss": 1.0}, 1)
        assert record.settle()
        away(monkeypatch, "log_batch", "log_artifact", "set_terminated")
        for epoch in (2, 3, 4):
            record.metrics({"loss": 1.0, "step/loss": 1.0}, epoch)
        record.content(b"", "table.json")
    said = capsys.readouterr().err.splitlines()
    [line] = [line for line in said if "does not have" in line]
    assert line == (
        "MLflow does not have 6 metrics from epoch 2 on, table.json of run r (database is locked); "
        "history.parquet has all"
    )
    assert [line for line in said if line.startswith("waiting up to 1 s for MLflow")]


def test_a_file_that_cannot_be_sent_is_named_and_the_others_go_on(short, tmp_path, monkeypatch, capsys):
    experiment = Experiment(Tracking(), str(tmp_path))
    real = mlflow.MlflowClient.log_artifact

    def one_fails(client, run_id, path, *others):
        if path.endswith("b.png"):
            raise OSError(28, "No space left on device")
        return real(client, run_id, path, *others)

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", one_fails)
    with experiment.start("r", {}) as record:
        for name in ("a.png", "b.png", "c.png"):
            record.content(b"", name)
    assert "MLflow does not have b.png of run r (No space left on device)" in capsys.readouterr().err
    found = mlflow.MlflowClient(experiment.uri).list_artifacts(record.run_id)
    assert [file.path for file in found] == ["a.png", "c.png"]


def test_children_begin_when_mlflow_answers_and_belong_to_their_parent(short, tmp_path, monkeypatch):
    experiment = Experiment(Tracking(), str(tmp_path))
    with experiment.start("sweep", {}) as parent, monkeypatch.context() as patched:
        away(patched, "create_run", "log_batch")
        child = experiment.start_later("trial", {"mask_ratio": 0.5}, parent=parent)
        child.metrics({"loss": 2.0}, 1)
        child.end()
        assert child.run_id == ""
    run = mlflow.MlflowClient(experiment.uri).get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert (run.info.status, run.data.params, run.data.metrics) == ("FINISHED", {"mask_ratio": "0.5"}, {"loss": 2.0})


def test_a_trial_that_mlflow_never_took_is_named(short, tmp_path, monkeypatch, capsys):
    experiment = Experiment(Tracking(), str(tmp_path))
    with experiment.start("sweep", {}) as parent:
        away(monkeypatch, "create_run")
        experiment.start_later("mask_ratio 0.5", {}, parent=parent).end()
    assert "MLflow does not have anything of trial mask_ratio 0.5 of run sweep" in capsys.readouterr().err


def test_a_model_that_cannot_be_registered_fails_the_run(short, tmp_path, monkeypatch):
    experiment = Experiment(Tracking(), str(tmp_path))
    away(monkeypatch, "create_model_version")
    with (
        pytest.raises(RunFailed, match="register: expected an MLflow that takes a new version of m, found: database"),
        experiment.start("r", {}) as record,
    ):
        record.register("aggregator", "m")


def test_a_run_does_not_begin_without_mlflow(tmp_path, monkeypatch):
    experiment = Experiment(Tracking(), str(tmp_path))
    away(monkeypatch, "create_run")
    with pytest.raises(UserError, match=r"tracking_uri: expected an MLflow that answers, .* database is locked"):
        experiment.start("r", {})


def test_a_failed_run_is_not_held_up(short, tmp_path, monkeypatch):
    experiment = Experiment(Tracking(), str(tmp_path))
    monkeypatch.setattr(run_record, "PATIENCE_S", 60.0)
    away(monkeypatch, "set_terminated")
    began_s = time.monotonic()
    with pytest.raises(ZeroDivisionError), experiment.start("r", {}):
        raise ZeroDivisionError
    assert time.monotonic() - began_s < 30


def test_a_request_to_a_server_that_is_away_is_short():
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 3
    assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 60


@pytest.mark.slow
def test_a_database_that_another_process_locks_gets_everything_afterwards(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_record, "_FLUSH_S", 0.0)
    experiment = Experiment(Tracking(), str(tmp_path))
    with experiment.start("r", {}) as record, closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
        assert record.settle()
        other.isolation_level = None
        other.execute("BEGIN EXCLUSIVE")
        began_s = time.monotonic()
        for epoch in range(100):
            record.metrics({"loss": epoch}, epoch)
        assert time.monotonic() - began_s < 1
        time.sleep(4)
        other.execute("ROLLBACK")
    assert losses(experiment, record.run_id) == list(range(100))
    assert "does not have" not in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_that_cannot_be_reached_for_a_while_gets_everything(tmp_path: Path, monkeypatch, capsys):
    behind, port = free_port(), free_port()
    monkeypatch.setattr(run_record, "_FLUSH_S", 0.0)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{tmp_path}/served.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    artifacts = ("--default-artifact-root", (tmp_path / "artifacts").as_uri())
    server = ("mlflow", "server", "--host", "127.0.0.1", "--port", str(behind), "--workers", "1", *artifacts)
    with serving(*server, port=behind, within_s=200):
        with forwarding(port, behind):
            experiment = Experiment(Tracking(tracking_uri=f"http://127.0.0.1:{port}"), str(tmp_path))
            record = experiment.start("r", {"sets": {"set_size": 4}})
            record.metrics({"loss": 0.0}, 0)
            assert record.settle()
        for epoch in range(1, 1500):
            record.metrics({"loss": epoch}, epoch)
        while "does not answer" not in capsys.readouterr().err:
            time.sleep(0.05)
        with forwarding(port, behind):
            record.end()
            assert losses(experiment, record.run_id) == list(range(1500))
            assert mlflow.MlflowClient(experiment.uri).get_run(record.run_id).info.status == "FINISHED"
    assert "does not have" not in capsys.readouterr().err
