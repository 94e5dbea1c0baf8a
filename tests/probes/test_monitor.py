"""The k-NN among the training videos that monitors a pretraining."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.stores import make_store

from scale_ray.aggregator import Aggregator, clip_representations, normalised_positions, set_tokens
from scale_ray.config import AggregatorOptions, Probing
from scale_ray.probes import TrainingMonitor
from scale_ray.probes.monitor import knn_top1_within
from scale_ray.store import StoredClips

IDS = [f"v{number:02d}" for number in range(12)]


@pytest.fixture
def aggregator() -> Aggregator:
    torch.manual_seed(0)
    return Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()


def store_of(folder, groups, labels):
    features = {video_id: np.random.default_rng(n).normal(size=(4, 6)) for n, video_id in enumerate(IDS)}
    return make_store(folder, features, sides=["train"] * 12, groups=groups, label=labels)


def test_videos_of_one_group_alone_cannot_be_monitored(tmp_path, aggregator):
    labels = ["a", "b", "b"] * 4
    one = store_of(tmp_path / "one", ["scene"] * 12, labels)
    assert TrainingMonitor(one, StoredClips(one, "train"), Probing())(aggregator) == {}
    two = store_of(tmp_path / "two", ["scene", "other"] * 6, labels)
    assert set(TrainingMonitor(two, StoredClips(two, "train"), Probing())(aggregator)) == {"monitor_knn_top1"}
    unlabelled = store_of(tmp_path / "half", ["scene"] * 6 + ["other"] * 6, labels[:6] + [None] * 6)
    assert TrainingMonitor(unlabelled, StoredClips(unlabelled, "train"), Probing())(aggregator) == {}, "of the labelled"


def test_neighbours_within_one_group_are_refused():
    videos, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="expected videos of at least 2 groups, found 1"):
        knn_top1_within(videos, labels, torch.zeros(6, dtype=torch.int64), Probing())


def test_the_monitor_is_the_method_written_out(tmp_path, aggregator):
    groups, labels = [f"scene {n // 3}" for n in range(12)], ["b", "a", "c", "a"] * 3
    store = store_of(tmp_path / "store", groups, labels)
    clips = StoredClips(store, "train").read()
    features, positions = torch.from_numpy(clips.features), normalised_positions(torch.from_numpy(clips.positions))
    videos = clip_representations(features, set_tokens(aggregator, features, positions)).mean(1)
    videos = torch.nn.functional.normalize(videos - videos.mean(0), dim=1)
    right = 0
    for row in range(12):
        votes = dict.fromkeys("abc", 0.0)
        for other in range(12):
            if groups[other] != groups[row]:
                votes[labels[other]] += float((videos[row] @ videos[other] / 0.07).exp())
        right += max(votes, key=votes.__getitem__) == labels[row]
    measured = TrainingMonitor(store, StoredClips(store, "train"), Probing())(aggregator)
    assert measured == {"monitor_knn_top1": pytest.approx(right / 12)}
