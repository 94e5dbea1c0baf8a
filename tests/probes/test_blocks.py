"""What is computed at once is limited by clips: a store of long videos needs no more memory than one of short ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.stores import make_store

from scale_ray.aggregator import Aggregator, videos_per_block
from scale_ray.clip_sets import ResidentClips, video_keys
from scale_ray.config import AggregatorOptions, Probing, Representing
from scale_ray.probes import FoldValidation, TrainingMonitor, fitting, suite
from scale_ray.probes.data import ProbeDataset
from scale_ray.probes.inputs import Tokens, View
from scale_ray.probes.targets import CLASSES, Targets
from scale_ray.store import ClipFeatures, StoredClips

VIDEOS, CLIPS, WIDTH = 40, 500, 4
IDS = [f"v{number:02d}" for number in range(VIDEOS)]
MOST_CLIPS = 512 * 16


@pytest.fixture
def clips(rng) -> ClipFeatures:
    features = rng.normal(size=(VIDEOS, CLIPS, WIDTH)).astype(np.float16)
    return ClipFeatures(IDS, features, rng.random((VIDEOS, CLIPS, 7)).astype(np.float32))


@pytest.fixture
def aggregator(monkeypatch) -> Aggregator:
    """An aggregator that refuses more clips at once than 512 videos of 16 have."""
    torch.manual_seed(0)
    model = Aggregator(WIDTH, AggregatorOptions(width=32, layers=1)).eval()
    forward = model.forward

    def limited(features, *others):
        assert features.shape[0] * features.shape[1] <= MOST_CLIPS / 2, "256 videos of 16 clips"
        return forward(features, *others)

    monkeypatch.setattr(model, "forward", limited)
    return model


def test_blocks_of_the_default_sizes_are_as_they_were():
    assert [videos_per_block(256, num_clips) for num_clips in (1, 8, 15, 16)] == [256] * 4
    assert [videos_per_block(256, num_clips) for num_clips in (17, 32, 500, 5000)] == [240, 128, 8, 1]


def test_probes_see_as_many_clips_at_once_of_long_videos(clips, aggregator, monkeypatch):
    targets = torch.arange(VIDEOS) % 2
    features, positions = torch.from_numpy(clips.features), torch.from_numpy(clips.positions)
    dataset = ProbeDataset(IDS, IDS, targets, features, positions, positions, video_keys(IDS))
    view = View(dataset, "feature", Tokens(dataset, aggregator, Representing(), 2))
    blocks: list[int] = []
    whole = view.whole
    monkeypatch.setattr(view, "whole", lambda rows: blocks.append(len(rows)) or whole(rows))
    probing = Probing(probe_epochs=1, probe_min_steps=2, learning_rates=(1e-3,), weight_decays=(0.0,))
    rows = torch.arange(VIDEOS)
    task = suite.ProbeTask(view, Targets(CLASSES, ["a", "b"], {}), rows[::2], rows[1::2], rows, probing, 0)
    probe = suite.linear(task)
    assert max(blocks) * CLIPS <= MOST_CLIPS, "the statistics"
    blocks.clear()
    scores = probe.scores(view, VIDEOS)
    assert max(blocks) * CLIPS <= MOST_CLIPS / 2, "the scores"
    blocks.clear()
    suite.knn(task)(view)
    assert max(blocks) * CLIPS <= MOST_CLIPS, "the vectors"
    monkeypatch.setattr(fitting, "_VIDEOS_AT_ONCE", 10**9)
    torch.testing.assert_close(probe.scores(view, VIDEOS), scores)


def test_a_monitored_training_sees_as_many_clips_at_once(tmp_path, clips, aggregator):
    labels = {video_id: "ab"[n % 2] for n, video_id in enumerate(IDS)}
    features = dict(zip(IDS, clips.features, strict=True))
    store = make_store(tmp_path / "store", features, sides=["train"] * VIDEOS, label=list(labels.values()))
    assert TrainingMonitor(store, StoredClips(store, "train"), Probing())(aggregator)
    groups = {video_id: video_id for video_id in IDS}
    resident = ResidentClips.from_clips(clips, torch.device("cpu"))
    for ranking in ("knn", "halves"):
        fold = FoldValidation(resident, torch.arange(VIDEOS) >= 20, labels, groups, Probing(), ranking)
        assert len(fold(aggregator)) == 20
