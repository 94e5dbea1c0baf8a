"""The scores of a sweep's trials: by labels of the other videos, or without labels; never by what a fold has itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scale_ray.aggregator import Aggregator, clip_representations, set_tokens
from scale_ray.clip_sets import ResidentClips
from scale_ray.config import AggregatorOptions, Probing
from scale_ray.errors import UserError
from scale_ray.probes import FoldValidation, ranking_of
from scale_ray.store import ClipFeatures

IDS = [f"v{n:02d}" for n in range(40)]
LABELS = {video_id: "ab"[n % 2] for n, video_id in enumerate(IDS)}
GROUPS = {video_id: f"g{n // 4}" for n, video_id in enumerate(IDS)}
HELD_OUT = torch.arange(40) >= 28


@pytest.fixture
def clips(rng) -> ResidentClips:
    means = {"a": rng.normal(size=12), "b": rng.normal(size=12)}
    features = np.stack([means[LABELS[i]] + 1.5 * rng.normal(size=(6, 12)) for i in IDS]).astype(np.float16)
    positions = rng.random((40, 6, 7)).astype(np.float32)
    return ResidentClips.from_clips(ClipFeatures(IDS, features, positions), torch.device("cpu"))


@pytest.fixture
def aggregator() -> Aggregator:
    torch.manual_seed(0)
    return Aggregator(12, AggregatorOptions(width=32, layers=1)).eval()


def test_knn_is_that_of_the_method_written_out(clips, aggregator):
    validation = FoldValidation(clips, HELD_OUT, LABELS, GROUPS, Probing(), "knn")
    tokens = set_tokens(aggregator, clips.features, clips.positions)
    videos = clip_representations(clips.features, tokens).mean(1)
    bank, queries = videos[~HELD_OUT], videos[HELD_OUT]
    bank, queries = F.normalize(bank - bank.mean(0), dim=1), F.normalize(queries - queries.mean(0), dim=1)
    classes = torch.tensor([0, 1] * 20)
    expected = []
    for query, truth in zip(queries, classes[HELD_OUT], strict=True):
        cosine, nearest = (bank @ query).topk(20)
        weights = (cosine / 0.07).exp()
        votes = [float(weights[classes[~HELD_OUT][nearest] == number].sum()) for number in (0, 1)]
        expected.append(votes.index(max(votes)) == int(truth))
    assert validation(aggregator).tolist() == expected
    assert validation.monitor == "knn_top1"
    assert validation.groups == [GROUPS[i] for i in IDS[28:]]


@pytest.mark.parametrize("rank_by", ["knn", "linear"])
def test_unlabelled_videos_are_neither_neighbours_nor_scored(clips, aggregator, rank_by):
    without = {video_id: label for video_id, label in LABELS.items() if video_id not in ("v03", "v30")}
    some = FoldValidation(
        clips, HELD_OUT, without, GROUPS, Probing(probe_epochs=1, probe_min_steps=100, learning_rates=(1e-2,)), rank_by
    )
    assert len(some(aggregator)) == 11
    assert "v30" not in [IDS[row] for row in some.rows.tolist()]
    assert some(aggregator).float().mean() > 0.7, "planted classes are found"


def test_a_class_that_only_the_fold_has_is_never_right(clips, aggregator):
    labels = {**LABELS, "v39": "only here"}
    right = FoldValidation(clips, HELD_OUT, labels, GROUPS, Probing(), "knn")(aggregator)
    assert not right[-1]


def test_without_labels_halves_of_a_video_find_each_other(clips, aggregator):
    validation = FoldValidation(clips, HELD_OUT, {}, GROUPS, Probing(), "halves")
    halves = [set_tokens(aggregator, clips.features[28:, h::2], clips.positions[28:, h::2]) for h in (0, 1)]
    cosine = F.normalize(halves[0], dim=1) @ F.normalize(halves[1], dim=1).T
    assert validation(aggregator).tolist() == (cosine.argmax(1) == torch.arange(12)).tolist()


def test_labels_decide_how_settings_are_ranked():
    folds = {video_id: n // 4 % 2 for n, video_id in enumerate(IDS)}
    assert ranking_of(IDS, folds, LABELS, "auto") == "knn"
    assert ranking_of(IDS, folds, {}, "auto") == "halves"
    one_fold = {video_id: label for video_id, label in LABELS.items() if folds[video_id] == 0}
    assert ranking_of(IDS, folds, one_fold, "auto") == "halves", "the same score in all folds"
    with pytest.raises(UserError, match="rank_by: expected labelled videos in every fold for linear"):
        ranking_of(IDS, folds, one_fold, "linear")
    assert ranking_of(IDS, folds, LABELS, "halves") == "halves"
