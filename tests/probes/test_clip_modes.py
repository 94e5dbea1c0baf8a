"""Probes are fitted on the clips of the chosen mode; test videos are always seen through their `eval` clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.stores import GEOMETRY, make_store, positions_of

from scale_ray.aggregator import Aggregator
from scale_ray.config import AggregatorOptions, Ingest, ProbeConfig
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.probes.data import load_probe_split
from scale_ray.probes.targets import read_targets
from scale_ray.stages.probe import probe
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures

NUM_VIDEOS, WIDTH = 24, 4
IDS = [f"v{number:02d}" for number in range(NUM_VIDEOS)]
SUBSETS = ["test" if number >= 18 else "train" for number in range(NUM_VIDEOS)]
TRAINING = IDS[:18]


def store_of(folder: Path, augmented: list[str]) -> FeatureStore:
    """A store whose `augmented` clips (5 per video) lie around 10, its other clips (4 per video) around 0."""
    rng = np.random.default_rng(0)
    labels = [f"class {number % 2}" for number in range(NUM_VIDEOS)]
    store = make_store(folder, {i: rng.normal(size=(4, WIDTH)) for i in IDS}, sides=SUBSETS, label=labels)
    if augmented:
        videos = [
            VideoFeatures(i, (10 + rng.normal(size=(5, WIDTH))).astype(np.float16), positions_of(rng, 5), GEOMETRY)
            for i in augmented
        ]
        store.commit(store.part_name("augmented", augmented), "augmented", videos)
    return store


@pytest.mark.parametrize(
    ("mode", "num_clips", "mean"), [("train", 4, 0), ("augmented", 5, 10), ("train+augmented", 9, 50 / 9)]
)
@pytest.mark.parametrize("ingest", ["memory", "disk"])
def test_training_videos_have_the_clips_of_the_mode_and_test_videos_eval_clips(tmp_path, mode, num_clips, mean, ingest):
    store = store_of(tmp_path / "store", IDS)
    options = Ingest(ingest=ingest, cache=str(tmp_path / "cache"))
    split = load_probe_split(store, read_targets(store), "default", options, mode)
    assert (split.train.video_ids, split.train.num_clips) == (TRAINING, num_clips)
    assert float(split.train.features.float().mean()) == pytest.approx(mean, abs=0.5)
    assert split.train.positions[..., 5].amin(1).abs().max() == 0
    assert split.train.positions[..., 6].amax(1).allclose(torch.ones(18))
    assert (split.test.video_ids, split.test.num_clips) == (IDS[18:], 4)
    assert float(split.test.features.float().mean()) == pytest.approx(0, abs=0.5)


def probed(folder: Path, store: FeatureStore, mode: str):
    checkpoint = folder / "aggregator"
    Aggregator(WIDTH, AggregatorOptions(width=32, layers=1), store.origin).save(str(checkpoint))
    config = ProbeConfig().replaced(probes=("knn",), resamples=10, probe_mode=mode)
    console = Console(quiet=True)
    places = {"runs": str(folder / "runs"), "out": str(folder / "out")}
    return probe(store.location, str(checkpoint), **places, config=config, console=console)


@pytest.mark.slow
def test_the_table_says_what_the_probes_were_fitted_on_and_what_is_left_out(tmp_path):
    store = store_of(tmp_path / "store", IDS[2:])
    [table] = probed(tmp_path, store, "train+augmented").tables
    assert table.num_train_videos == 16
    left_out = "2 training videos lack train or augmented clips and are left out"
    assert f"the probes were fitted on train+augmented clips; {left_out}" in table.notes


def test_a_store_without_the_mode_is_refused_before_the_work(tmp_path):
    store = store_of(tmp_path / "store", [])
    with pytest.raises(UserError, match=r"probe_mode: .*found one with train and eval clips; add them with: scale-ray"):
        probed(tmp_path, store, "augmented")
    assert not (tmp_path / "out").exists()
