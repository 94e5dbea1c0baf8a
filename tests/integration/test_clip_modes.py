"""Pretraining, probes and sweeps on `augmented` clips, and on those of two modes as one pool, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.command import Command
from support.stores import GEOMETRY, make_store, positions_of

from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500), pytest.mark.usefixtures("shared_ray")]
SMALL = ("--prediction-hidden", 32, "--target-hidden", 32, "--width", 32, "--layers", 1, "--batch", 8, "--workers", 1)
IDS = [f"v{number:02d}" for number in range(40)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Thirty training videos with 16 `train` clips, of which 28 also have 16 `augmented` clips, and ten test videos."""
    rng = np.random.default_rng(0)
    means = {"a": rng.normal(size=8), "b": rng.normal(size=8)}
    labels = ["ab"[number % 2] for number in range(40)]
    features = {i: means[label] + rng.normal(size=(16, 8)) for i, label in zip(IDS, labels, strict=True)}
    subsets = ["train"] * 30 + ["test"] * 10
    store = make_store(tmp_path_factory.mktemp("modes") / "store", features, sides=subsets, label=labels)
    others = [VideoFeatures(i, (features[i] + 1).astype(np.float16), positions_of(rng, 16), GEOMETRY) for i in IDS[:28]]
    store.commit(store.part_name("augmented", IDS[:28]), "augmented", others)
    return store


@pytest.fixture
def pretrain(scale_ray: Command, store: FeatureStore, tmp_path: Path):
    def run(name: str, *options: object):
        words = ("pretrain", "--store", store.location, "--runs", tmp_path, "--run", name)
        return scale_ray(*words, *SMALL, "--epochs", 2, "--monitor-epochs", 1, *options)

    return run


@pytest.mark.parametrize(("mode", "num_videos"), [("train", 30), ("augmented", 28), ("train+augmented", 28)])
def test_an_aggregator_records_the_mode_that_it_was_trained_on(pretrain, tmp_path, mode, num_videos):
    # Sets of 16 need the 32 clips of the pool.
    ended = pretrain("r", "--pretrain-mode", mode, "--set-size", 16 if "+" in mode else 8)
    assert ended.code == 0, ended.err
    assert f"training on {num_videos} videos" in ended.err
    lacks = "2 training videos lack " + mode.replace("+", " or ") + " clips: left out"
    assert (lacks in ended.err) == (mode != "train")
    recorded = json.loads((tmp_path / "r" / "aggregator" / "config.json").read_text())["trained_on"]
    assert (recorded["mode"], recorded["videos"]) == (mode, num_videos)
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["training"]["pretrain_mode"] == mode


def test_a_run_goes_on_with_its_own_mode_alone(pretrain, tmp_path):
    assert pretrain("r").code == 0
    refused = pretrain("r", "--pretrain-mode", "augmented")
    assert refused.code == 2
    assert "training.pretrain_mode 'train' before, 'augmented' now" in refused.err
    # A run of an earlier version has no such option: it was trained on `train` clips.
    path = tmp_path / "r" / "config.yaml"
    earlier = yaml.safe_load(path.read_text())
    del earlier["training"]["pretrain_mode"]
    path.write_text(yaml.safe_dump(earlier))
    again = pretrain("r")
    assert again.code == 0
    assert "is finished already" in again.err
    assert "'train' before, 'augmented' now" in pretrain("r", "--pretrain-mode", "augmented").err


def test_a_sweep_trains_on_the_mode(scale_ray, store, tmp_path):
    words = ("sweep", "--store", store.location, "--runs", tmp_path, *SMALL, "--epochs", 2, "--seeds", 1, "--folds", 2)
    ended = scale_ray(*words, "--set-size", "8,16", "--mask-ratio", 0.25, "--pretrain-mode", "train+augmented")
    assert ended.code == 0, ended.err
    assert "each trial was trained on 28 training videos" in ended.out
    refused = scale_ray(*words, "--set-size", "4,8", "--mask-ratio", 0.25)
    assert refused.code == 2
    assert "training.pretrain_mode 'train+augmented' before, 'train' now" in refused.err


def test_an_aggregator_of_two_stores_records_both(scale_ray: Command, store: FeatureStore, tmp_path: Path):
    rng = np.random.default_rng(1)
    features = {f"w{number}": rng.normal(size=(16, 8)) for number in range(8)}
    second = make_store(tmp_path / "second", features, sides=["train"] * 8)
    both = f"{store.location},{second.location}"
    words = ("pretrain", "--store", both, "--store-weights", "1,0.5", "--runs", tmp_path, "--run", "r", "--epochs", 2)
    ended = scale_ray(*words, *SMALL, "--monitor-epochs", 1)
    assert ended.code == 0, ended.err
    assert "training on 38 videos" in ended.err
    recorded = json.loads((tmp_path / "r" / "aggregator" / "config.json").read_text())["trained_on"]
    assert (recorded["videos"], [other["videos"] for other in recorded["other_stores"]]) == (30, [8])
    described = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert described["store"]["location"] == [store.location, second.location]
    assert "is finished already" in scale_ray(*words, *SMALL, "--monitor-epochs", 1).err
    probed = scale_ray("probe", "--store", store.location, "--checkpoint", tmp_path / "r", "--probes", "knn")
    assert "the aggregator was also trained on 8 videos of other stores" in probed.out
