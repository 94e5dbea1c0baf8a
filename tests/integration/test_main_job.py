"""The main job, end to end, as a user runs it: real videos in, real commands, real Ray and MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.csv
import pyarrow.dataset
import pytest
from support.command import BACKBONE, Command, Extracted
from support.servers import free_port, serving
from support.stores import read_clips

from scale_ray.aggregator.model import Aggregator
from scale_ray.backbones import load_backbone
from scale_ray.config import BackboneOptions, Sampling
from scale_ray.corpus.corpus import read_corpus
from scale_ray.corpus.sample_videos import MOTIONS
from scale_ray.decoding.decode import decode_clips
from scale_ray.store.feature_store import FeatureStore

pytestmark = pytest.mark.ray
# The trained probes have tests of their own.
BRIEF = ("--probe-epochs", 1, "--probe-min-steps", 20, "--resamples", 50)
PROJECT = Path(__file__).parents[2]
SMALL = ("--prediction-hidden", 32, "--target-hidden", 32, "--width", 32, "--layers", 1, "--batch", 8)


def test_extraction_tells_in_numbers_and_exit_code_what_failed(extracted: Extracted):
    ended = extracted.ended
    assert ended.code == 3, ended.err
    assert "32 of 35 videos are in" in ended.out
    assert "32 done + 3 failed + 0 skipped = 35 videos" in ended.out
    for name in ("cut_short.mp4", "empty.mp4", "notes.txt"):
        assert f"failed: approach/{name} (open: not a readable video" in ended.out
    ledger = pyarrow.dataset.dataset(extracted.store / "failures").to_table()
    assert sorted(ledger["video_id"].to_pylist()) == [
        f"approach/{name}" for name in ("cut_short.mp4", "empty.mp4", "notes.txt")
    ]
    assert set(ledger["attempts"].to_pylist()) == {1}


def test_libraries_keep_quiet_and_progress_is_told(extracted: Extracted):
    lines = extracted.ended.err.splitlines()
    assert all(line.startswith(("extract: ", "35 files in ")) for line in lines), lines
    assert any(line.startswith("extract: 35 videos in ") for line in lines)


def test_training_videos_have_train_clips_and_test_videos_eval_clips(extracted: Extracted, videos: Path):
    splits = read_corpus(str(videos)).videos
    store = FeatureStore(str(extracted.store))
    for mode, split, clips in (("train", "train", 16), ("eval", "test", 15)):
        wanted = {row["video_id"] for row in splits.to_pylist() if dict(row["splits"]) == {"default": split}}
        found = read_clips(store, mode)
        assert set(found.video_ids) == {video_id for video_id in wanted if "_0" in video_id}
        assert found.features.shape[1:] == (clips, 1024)
        assert np.isfinite(found.features).all()


def test_stored_features_are_those_of_a_bare_loop(scale_ray: Command, videos: Path, tmp_path: Path):
    """No Ray, no batches over videos: the same decoder and backbone give the same numbers, at the size of each mode."""
    manifest = tmp_path / "list.csv"
    rows = [f"{motion}/{motion}_00{n}.mp4,{subset}" for motion in MOTIONS for n, subset in ((0, "train"), (2, "test"))]
    manifest.write_text("\n".join(["video_id,path,split", *(f"{r.split(',')[0]},{videos}/{r}" for r in rows)]) + "\n")
    ended = scale_ray("extract", manifest, "--store", tmp_path / "s", *BACKBONE, "--eval-input-px", 73, "--cpus", 2)
    assert ended.code == 0, ended.err
    import torch

    options = BackboneOptions(backbone=BACKBONE[1], weights="none", input_px=int(BACKBONE[5]))
    backbone = load_backbone(options, 16)
    store = FeatureStore(str(tmp_path / "s"))
    assert (store.fingerprint["input_px"], store.fingerprint["eval_input_px"]) == (64, 73)
    for mode, row, size_px in (("train", 0, 64), ("train", 3, 64), ("eval", 0, 73), ("eval", 3, 73)):
        stored = read_clips(store, mode)
        video_id = stored.video_ids[row]
        clips = decode_clips(str(videos / video_id), video_id, mode, Sampling(), [size_px])
        expected = backbone(torch.from_numpy(clips.pixels[0])).numpy()
        np.testing.assert_allclose(stored.features[row], expected, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(stored.positions[row], clips.positions)


def test_again_does_nothing_and_a_corrected_manifest_corrects_the_labels(
    scale_ray: Command, videos: Path, tmp_path: Path
):
    manifest = tmp_path / "list.csv"
    rows = [f"{videos}/{motion}/{motion}_000.mp4,{motion},train" for motion in MOTIONS]
    manifest.write_text("\n".join(["path,label,split", *rows]) + "\n")
    command = ("extract", manifest, "--store", tmp_path / "store", *BACKBONE, "--cpus", 1)
    first = scale_ray(*command)
    assert (first.code, "4 videos extracted now" in first.out) == (0, True), first.err
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "features").iterdir()}

    again = scale_ray(*command)
    assert again.code == 0
    assert "4 of 4 videos are in" in again.out
    assert "everything was done already" in again.out

    manifest.write_text(manifest.read_text().replace(",recede,", ",withdraw,"))
    corrected = scale_ray(*command)
    assert corrected.code == 0
    assert "labels, splits and columns were brought up to date" in corrected.out
    assert "withdraw" in FeatureStore(str(tmp_path / "store")).labels().values()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "features").iterdir()} == parts

    replaced = tmp_path / "replaced.csv"
    first_path = rows[0].split(",")[0]
    replaced.write_text(f"video_id,path,label,split\n{first_path},{videos}/recede/recede_001.mp4,a,train\n")
    refused = scale_ray("extract", replaced, "--store", tmp_path / "store", *BACKBONE)
    assert refused.code == 2
    assert "expected the video that the store holds under this id" in refused.err


def test_several_backbones_decode_once_and_fill_a_store_each(scale_ray: Command, extracted: Extracted, tmp_path: Path):
    """Of other widths and inputs, one of them a video model, in mode augmented, of which a store holds nothing yet."""
    manifest = tmp_path / "list.csv"
    folder = Path(FeatureStore(str(extracted.store)).videos()["path"][0].as_py()).parents[1]
    manifest.write_text("path,label\n" + "".join(f"{folder}/{m}/{m}_001.mp4,{m}\n" for m in MOTIONS))
    names = ("shufflenet_v2_x0_5", "r3d_18")
    options = ("--weights", "none", "--input-px", 32, "--mode", "augmented", "--clips", 2, "--frames", 8, "--json")
    ended = scale_ray("extract", manifest, "--store", tmp_path / "both", "--backbone", ",".join(names), *options)
    assert ended.code == 0, ended.err
    assert [(s["num_done"], s["num_extracted"]) for s in json.loads(ended.out)["stores"]] == [(4, 4), (4, 4)]
    clips = [read_clips(FeatureStore(str(tmp_path / "both" / name)), "augmented") for name in names]
    assert [of.features.shape for of in clips] == [(4, 2, 1024), (4, 2, 512)]
    np.testing.assert_array_equal(clips[0].positions, clips[1].positions)


@pytest.fixture(scope="module")
def trained(scale_ray: Command, extracted: Extracted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs, with one finished run."""
    runs = tmp_path_factory.mktemp("main") / "runs"
    ended = scale_ray(
        *("pretrain", "--store", extracted.store, "--runs", runs, "--run", "first", "--epochs", 8, *SMALL, "--json"),
        *("--held-out-share", 0.2, "--monitor-epochs", 4, "--register", "aggregator of the tests"),
    )
    assert ended.code == 0, ended.err
    assert "with 2 workers" in ended.err or os.cpu_count() == 1
    assert json.loads(ended.out)["last_epoch"]["epoch"] == 8
    return runs


def test_pretraining_leaves_a_whole_run(trained: Path):
    folder = trained / "first"
    assert {"config.yaml", "aggregator", "history.parquet", "mlflow.json"} <= {path.name for path in folder.iterdir()}
    aggregator = Aggregator.load(str(folder / "aggregator"))
    assert aggregator.origin["backbone"] == "shufflenet_v2_x0_5"
    client = mlflow.MlflowClient(f"sqlite:///{trained}/mlflow.db")
    run = client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["sets.mask_ratio"] == "0.25"
    assert run.data.params["features.backbone"] == "shufflenet_v2_x0_5"
    assert run.data.tags["scale_ray.command"].startswith("__main__.py pretrain --store ")
    assert "scale_ray.version" in run.data.tags

    def steps(name: str) -> list[int]:
        return [point.step for point in client.get_metric_history(run.info.run_id, name)]

    assert steps("loss") == steps("gradient_norm") == steps("clips_per_s") == steps("memory_mib") == list(range(1, 9))
    assert steps("validation_loss") == steps("monitor_knn_top1") == [4, 8]
    assert steps("step/loss") == steps("step/learning_rate") == list(range(1, len(steps("step/loss")) + 1))
    assert len(steps("step/loss")) % 8 == 0
    [version] = client.search_model_versions("name='aggregator of the tests'")
    assert version.run_id == run.info.run_id
    assert version.source.endswith("/artifacts/aggregator")
    assert {file.path for file in client.list_artifacts(run.info.run_id, "aggregator")} == {
        "aggregator/config.json",
        "aggregator/model.safetensors",
    }


def test_the_same_run_again_is_finished_and_another_configuration_is_refused(
    scale_ray: Command, extracted: Extracted, trained: Path
):
    command = ("pretrain", "--store", extracted.store, "--runs", trained, "--run", "first", *SMALL)
    command = (*command, "--held-out-share", 0.2, "--monitor-epochs", 4)
    again = scale_ray(*command, "--epochs", 8)
    assert (again.code, "finished already" in again.err) == (0, True)
    other = scale_ray(*command, "--epochs", 9)
    assert other.code == 2
    assert "training.epochs 8 before, 9 now" in other.err


def test_a_probe_prints_the_table_and_draws_the_picture(scale_ray: Command, extracted: Extracted, trained: Path):
    ended = scale_ray("probe", "--store", extracted.store, "--runs", trained, "--checkpoint", "first", *BRIEF)
    assert ended.code == 0, ended.err
    assert "with trained aggregator" in ended.out
    assert (trained / "first" / "probe" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_is_a_parent_with_finished_children(
    scale_ray: Command, extracted: Extracted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ended = scale_ray(
        *("sweep", "--store", extracted.store, "--runs", tmp_path, "--mask-ratio", "0.25,0.5", "--set-size", "4,8"),
        *("--epochs", 2, "--seeds", 1, *SMALL),
    )
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[6].startswith("4 settings, 4 trials, 4 of them now: ")
    assert lines[8].startswith("best setting: --set-size ")
    assert len(lines) == 11, "the table alone, and nothing of a library's"
    assert all(line.startswith(("4 settings x ", "sweep: ")) for line in ended.err.splitlines()), ended.err
    # Not set_tracking_uri: it would hold for the tests that follow.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    runs = mlflow.search_runs(experiment_names=["scale-ray"], output_format="list")
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(parents), len(children)) == (1, 4)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {(run.data.params["sets.mask_ratio"], run.data.params["sets.set_size"]) for run in children} == {
        ("0.25", "4"),
        ("0.25", "8"),
        ("0.5", "4"),
        ("0.5", "8"),
    }
    best = max(run.data.metrics["objective"] for run in children)
    assert parents[0].data.metrics["best_objective"] == best


@pytest.fixture
def head() -> Iterator[str]:
    """A Ray head on loopback; the address of its dashboard."""
    port, dashboard = free_port(), free_port()
    arguments = (
        *("start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={port}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        # By default every Ray on a machine wants port 52365 for the agent that runs jobs. One that finds it taken,
        # by the last processes of another test's Ray, lives on without an agent.
        f"--dashboard-agent-listen-port={free_port()}",
    )
    with serving("ray", *arguments, "--disable-usage-stats", port=dashboard, within_s=60):
        yield f"http://127.0.0.1:{dashboard}"


def test_the_pipeline_runs_as_a_submitted_job(head: str, extracted: Extracted, videos: Path, tmp_path: Path):
    """On the store that is there already, so that the test is of the job and not of extraction again."""
    arguments = [
        *("python", "jobs/pipeline.py", videos, "--store", extracted.store, "--runs", tmp_path / "runs"),
        *("--run", "job", "--epochs", 2, "--workers", 1, *SMALL, *BACKBONE, *BRIEF),
    ]
    submit = [
        *(str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", head),
        *("--working-dir", str(PROJECT), "--", *map(str, arguments)),
    ]
    for _ in range(20):
        ended = subprocess.run(submit, capture_output=True, text=True, timeout=300, check=False)
        # The dashboard answers some seconds before its agent, which runs the jobs.
        if "No available agent" not in ended.stderr:
            break
        time.sleep(2)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "with trained aggregator" in ended.stdout
    assert (tmp_path / "runs" / "job" / "probe" / "results.png").exists()
