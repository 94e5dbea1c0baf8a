"""No stage leaves anything in the working folder: a job's own folder vanishes with it."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from support.command import Command, Extracted

pytestmark = pytest.mark.ray

QUICK = ("--epochs", "1", "--batch", "8", "--prediction-hidden", "8", "--target-hidden", "8", "--cpus", "2")


def test_the_working_folder_stays_empty_after_each_stage(
    extracted: Extracted, videos: Path, scale_ray: Command, tmp_path: Path
):
    empty, runs, model = tmp_path / "empty", tmp_path / "runs", tmp_path / "model"
    empty.mkdir()
    # A database that is not in the folder of the runs: MLflow by itself would put artifacts into ./mlruns.
    record = ("--tracking-uri", f"sqlite:///{tmp_path}/elsewhere.db")
    store, run = ("--store", extracted.store), ("--checkpoint", "r", "--runs", runs)
    query = "approach/approach_000.mp4"
    for arguments in (
        ("inspect", videos, "--inspect-sample", 0),
        ("extract", videos, *store, "--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--input-px", "64"),
        ("pretrain", *store, "--run", "r", "--runs", runs, *record, *QUICK),
        ("probe", *store, *run, *record, "--probes", "knn"),
        ("embed", *store, *run, "--out", tmp_path / "vectors"),
        ("neighbours", query, *store, *run),
        ("sweep", *store, "--runs", runs, *record, *QUICK, "--mask-ratio", "0.25", "--set-size", "4"),
        ("export", *run, "--out", model, *record, "--register", "m"),
        ("store", extracted.store, "--verify"),
    ):
        ended = scale_ray(*arguments, cwd=empty)
        assert ended.code in (0, 3), ended.err
        assert not list(empty.iterdir()), arguments
    assert list((runs / "r" / "neighbours").glob("approach_000.mp4-*.png"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/elsewhere.db")
    experiment = client.get_experiment_by_name("scale-ray")
    assert experiment.artifact_location == (runs / "artifacts").as_uri()
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    [trained] = [found for found in client.search_runs([experiment.experiment_id]) if found.info.run_name == "r"]
    [dataset] = trained.inputs.dataset_inputs
    assert dataset.dataset.name == "store"
    [output] = trained.outputs.model_outputs
    assert client.get_logged_model(output.model_id).name == "r-aggregator"
