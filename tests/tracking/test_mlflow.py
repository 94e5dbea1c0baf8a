import mlflow
import numpy as np
import pytest
from support.stores import make_store

from scale_ray.config import Tracking
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.stages.pretrain import _mlflow_run
from scale_ray.store import TrainingStores
from scale_ray.tracking import RunFolder, run_record
from scale_ray.tracking.mlflow import Experiment, artifact_root, server_command, tracking_uri


def test_the_option_comes_before_the_environment_and_that_before_the_runs_folder(monkeypatch, tmp_path):
    runs = str(tmp_path / "runs")
    assert tracking_uri(Tracking(), runs) == f"sqlite:///{runs}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(Tracking(), runs) == "http://127.0.0.1:5000"
    assert tracking_uri(Tracking(tracking_uri="sqlite:///other.db"), runs) == "sqlite:///other.db"


def test_a_run_holds_options_metrics_and_its_end(tmp_path):
    experiment = Experiment(Tracking(experiment="e"), str(tmp_path / "runs"))
    with experiment.start("parent", {"sets": {"mask_ratio": 0.5}}) as parent:
        for step in range(3):
            parent.metrics({"loss": 3.0 - step}, step)
    with pytest.raises(ZeroDivisionError), experiment.start("child", {}, parent=parent.run_id) as child:
        raise ZeroDivisionError
    client = mlflow.MlflowClient(experiment.uri)
    run = client.get_run(parent.run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"sets.mask_ratio": "0.5"})
    assert [point.value for point in client.get_metric_history(parent.run_id, "loss")] == [3.0, 2.0, 1.0]
    failed = client.get_run(child.run_id)
    assert (failed.info.status, failed.data.tags["mlflow.parentRunId"]) == ("FAILED", parent.run_id)


@pytest.mark.parametrize("run_id", ["0" * 32, "", "../x", "no run's id"])
def test_a_run_that_mlflow_does_not_know_is_not_resumed(tmp_path, run_id):
    experiment = Experiment(Tracking(), str(tmp_path))
    assert experiment.resume(run_id) is None


def test_a_deleted_run_is_not_resumed(tmp_path):
    experiment = Experiment(Tracking(), str(tmp_path))
    run_id = experiment.start("r", {}).run_id
    assert experiment.resume(run_id).run_id == run_id
    mlflow.MlflowClient(experiment.uri).delete_run(run_id)
    assert experiment.resume(run_id) is None


def test_an_unfinished_run_goes_on_with_a_new_mlflow_run_if_the_old_one_is_gone(tmp_path, capsys):
    stores = TrainingStores([make_store(tmp_path / "store", {"a": np.zeros((16, 5))}, sides=["train"])])
    folder = RunFolder(str(tmp_path), "r")
    with _mlflow_run(Experiment(Tracking(), str(tmp_path)), None, folder, {}, stores, Console()) as first:
        pass
    empty = Tracking(tracking_uri=f"sqlite:///{tmp_path}/another.db")
    with _mlflow_run(Experiment(empty, str(tmp_path)), None, folder, {}, stores, Console()) as second:
        assert second.run_id == folder.mlflow_run() != first.run_id
    assert f"MLflow does not have run {first.run_id} any more" in capsys.readouterr().err


def test_the_page_is_served_on_loopback_and_only_where_there_are_runs(tmp_path):
    with pytest.raises(UserError, match="expected a folder with runs, found no database"):
        server_command(Tracking(), str(tmp_path / "typo"), "127.0.0.1", 5000)
    assert not (tmp_path / "typo").exists()
    Experiment(Tracking(), str(tmp_path))
    command = server_command(Tracking(), str(tmp_path), "127.0.0.1", 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_the_command_is_told_without_passwords(monkeypatch):
    uris = ["--tracking-uri=postgresql://user:s3cret@host/db", "s3://key:s3cr+et@bucket/videos"]
    monkeypatch.setattr("sys.argv", ["/bin/scale-ray", "pretrain", *uris, "--run", "a b"])
    told = run_record._provenance()["scale_ray.command"]
    assert told == "scale-ray pretrain --tracking-uri=postgresql://host/db s3://bucket/videos --run 'a b'"


@pytest.mark.parametrize(
    ("uri", "runs", "root"),
    [
        ("sqlite:////elsewhere/mlflow.db", "/runs", "file:///runs/artifacts"),
        ("postgresql://user:password@host/db", "/runs", "file:///runs/artifacts"),
        ("mysql+pymysql://host/db", "s3://bucket/runs", "s3://bucket/runs/artifacts"),
        ("http://127.0.0.1:5000", "/runs", None),
    ],
)
def test_artifacts_of_a_database_are_beside_the_runs_and_a_server_decides_for_itself(uri, runs, root):
    assert artifact_root(uri, runs) == root


def test_an_existing_experiment_is_marked_as_model_training(tmp_path):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_experiment("e", (tmp_path / "artifacts").as_uri())
    Experiment(Tracking(experiment="e"), str(tmp_path))
    assert client.get_experiment_by_name("e").tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_server_without_logged_models_costs_the_entry_and_not_the_run(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise mlflow.MlflowException("API request failed with error code 404")

    folder = tmp_path / "aggregator"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with Experiment(Tracking(), str(tmp_path / "runs")).start("r", {}) as record:
        assert record.trained_model(str(folder), "r-aggregator", 3) is None
        monkeypatch.setattr(mlflow.MlflowClient, "create_logged_model", missing)
        assert record.trained_model(str(folder), "r-aggregator", 3) == "API request failed with error code 404"


def test_two_commands_do_not_work_on_one_run(tmp_path):
    folder = RunFolder(str(tmp_path), "sweep")
    with folder.claimed():
        with pytest.raises(UserError, match="found 'sweep' in use"), RunFolder(str(tmp_path), "sweep").claimed():
            pass
        with RunFolder(str(tmp_path), "other").claimed():
            pass
    with folder.claimed():
        pass
