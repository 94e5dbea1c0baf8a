"""No test video, and no video of its group, reaches a fit or a selection; and what an aggregator saw is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.stores import make_store

from scale_ray.aggregator.model import Aggregator
from scale_ray.config import PROBES, AggregatorOptions, Ingest, Probing
from scale_ray.errors import UserError
from scale_ray.pretraining.provenance import provenance_notes, trained_on
from scale_ray.probes import evaluation, suite
from scale_ray.probes.data import load_probe_split
from scale_ray.probes.evaluation import probe_table
from scale_ray.probes.targets import read_targets
from scale_ray.store.clip_reader import training_clips
from scale_ray.store.feature_store import FeatureStore

NUM_VIDEOS, NUM_GROUPS = 60, 12
IDS = [f"v{number:02d}" for number in range(NUM_VIDEOS)]
GROUPS = [f"scene {number % NUM_GROUPS}" for number in range(NUM_VIDEOS)]
SUBSETS = ["test" if number % NUM_GROUPS >= 9 else "train" for number in range(NUM_VIDEOS)]
TRAINED = ("linear", "mlp", "attentive", "finetuned", "low_shot")
QUICK = Probing(
    probes=("all",),
    probe_min_steps=8,
    probe_set_size=2,
    deep_min_steps=3,
    probe_epochs=1,
    deep_epochs=1,
    probe_seeds=2,
    resamples=10,
    low_shot=(0.5,),
    learning_rates=(1e-2, 1e-3),
    weight_decays=(0.0,),
)


def store_of(folder: Path, *, test_is_garbage: bool = False, subsets: list[str] | None = None) -> FeatureStore:
    rng = np.random.default_rng(0)
    features = {video_id: rng.normal(size=(4, 6)) for video_id in IDS}
    labels = [f"class {number % 3}" for number in range(NUM_VIDEOS)]
    if test_is_garbage:
        for number, video_id in enumerate(IDS):
            if SUBSETS[number] == "test":
                features[video_id] = 1000.0 * rng.normal(size=(4, 6))
                labels[number] = f"class {(number + 1) % 3}"
    return make_store(folder, features, sides=subsets or SUBSETS, groups=GROUPS, label=labels)


def aggregator() -> Aggregator:
    torch.manual_seed(0)
    return Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()


@pytest.fixture
def seen(monkeypatch) -> list[tuple[str, suite.ProbeTask, object]]:
    """Every probe that is fitted: its name, its task, and its result."""
    calls: list[tuple[str, suite.ProbeTask, object]] = []
    for name in (*TRAINED, "knn"):
        original = getattr(suite, name)

        def recorded(task, *more, original=original, name=name):
            result = original(task, *more)
            calls.append((name, task, result))
            return result

        monkeypatch.setattr(suite, name, recorded)
    return calls


def weights_of(result: object) -> list[torch.Tensor]:
    fitted = result.values() if isinstance(result, dict) else [result]
    return [value for probe in fitted for value in probe.fitted.heads[0].state_dict().values()]


@pytest.mark.slow
def test_every_probe_fits_and_chooses_the_same_whatever_the_test_videos_are(tmp_path, seen):
    for name in ("whole", "garbage"):
        probe_table(store_of(tmp_path / name, test_is_garbage=name == "garbage"), [aggregator()], QUICK)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert {name for name, *_ in seen} == {*TRAINED, "knn"}
    for (name, _, ours), (other, _, theirs) in zip(first, second, strict=True):
        assert name == other
        if name == "knn":
            continue
        settings = [{k: p.setting for k, p in r.items()} if isinstance(r, dict) else r.setting for r in (ours, theirs)]
        assert settings[0] == settings[1], name
        for weight, same in zip(weights_of(ours), weights_of(theirs), strict=True):
            assert torch.equal(weight, same), name


def test_what_is_learned_from_holds_neither_a_test_video_nor_its_group(tmp_path, seen):
    probe_table(store_of(tmp_path / "store"), [aggregator()], QUICK)
    test_groups = {group for group, subset in zip(GROUPS, SUBSETS, strict=True) if subset == "test"}
    train_ids = {video_id for video_id, subset in zip(IDS, SUBSETS, strict=True) if subset == "train"}
    assert len(seen) > 30
    for name, task, _ in seen:
        dataset = task.view.dataset
        assert set(dataset.video_ids) == train_ids, name
        assert not set(dataset.groups) & test_groups, name
        fitted, selecting = ({dataset.groups[row] for row in rows} for rows in (task.fit_rows, task.selection_rows))
        assert fitted, name
        assert selecting, name
        assert not fitted & selecting, "no group is in both the fit and the selection"
        assert sorted([*task.fit_rows.tolist(), *task.selection_rows.tolist()]) == list(range(len(dataset)))


def test_the_test_side_is_scored_once_a_probe_and_seed(tmp_path, monkeypatch):
    scored: list[str] = []
    original = evaluation.score_metrics
    monkeypatch.setattr(evaluation, "score_metrics", lambda name, *rest: scored.append(name) or original(name, *rest))
    probing = Probing(**{**QUICK.to_dict(), "probes": ["linear", "attentive"]})
    probe_table(store_of(tmp_path / "store"), [aggregator()], probing)
    assert sorted(scored) == sorted(["linear", "attentive"] * 2 * 5), "two seeds of five representations"


def test_official_validation_videos_choose_and_are_not_fitted(tmp_path, seen):
    subsets = ["validation" if number % NUM_GROUPS in (0, 1) else subset for number, subset in enumerate(SUBSETS)]
    probing = Probing(**{**QUICK.to_dict(), "probes": ["linear"], "probe_seeds": 1})
    table, _ = probe_table(store_of(tmp_path / "store", subsets=subsets), [aggregator()], probing)
    assert table.num_train_videos == subsets.count("train")
    subset_by_id = dict(zip(IDS, subsets, strict=True))
    for _, task, _ in seen:
        ids = task.view.dataset.video_ids
        assert {subset_by_id[ids[row]] for row in task.selection_rows} == {"validation"}
        assert {subset_by_id[ids[row]] for row in task.fit_rows} == {"train"}
        assert task.refit_rows.tolist() == task.fit_rows.tolist()


def test_a_group_on_both_sides_is_refused(tmp_path):
    straddling = [*SUBSETS]
    straddling[0] = "test"  # a video of scene 0, whose other videos are training videos
    store = store_of(tmp_path / "store", subsets=straddling)
    with pytest.raises(UserError, match="no group in both training and test videos, found 1, such as 'scene 0'"):
        load_probe_split(store, read_targets(store), "default", Ingest())


def test_one_group_alone_cannot_choose(tmp_path):
    features = {f"v{n}": np.random.default_rng(n).normal(size=(4, 6)) for n in range(8)}
    labels = [f"class {n % 2}" for n in range(8)]
    groups = ["one"] * 4 + ["another"] * 4
    store = make_store(tmp_path / "store", features, sides=["train"] * 4 + ["test"] * 4, groups=groups, label=labels)
    split = load_probe_split(store, read_targets(store), "default", Ingest())
    fit_rows, selection_rows = split.fit_and_selection_rows(0.2, 0)
    assert (len(fit_rows), len(selection_rows)) == (4, 0)
    probing = Probing(**{**QUICK.to_dict(), "probes": ["linear"]})
    table, _ = probe_table(store, [aggregator()], probing)
    assert "linear_top1" in table.rows[0].metrics


def test_pretraining_sees_the_training_split_alone_or_says_so(tmp_path):
    store = store_of(tmp_path / "store")
    alone, _ = training_clips(store)
    assert set(alone.video_ids) == {i for i, subset in zip(IDS, SUBSETS, strict=True) if subset == "train"}
    seen = trained_on([store], alone.video_ids, 8)
    assert (seen["videos"], seen["unlabelled"], seen["splits"]) == (45, 0, {"default": {"train": 45}})
    assert provenance_notes(seen, store, "default") == []

    everything = trained_on([store], IDS, 8)
    [note] = provenance_notes(everything, store, "default")
    assert note == "transductive: the aggregator also saw 15 test videos, without labels"
    [note] = provenance_notes({}, store, "default")
    assert "does not record" in note
    grown = make_store(tmp_path / "grown", {"w": np.zeros((4, 6))}, sides=["train"])
    [note] = provenance_notes(seen, grown, "default")
    assert "of another corpus" in note
    moved = store_of(tmp_path / "moved", subsets=["train" if subset == "test" else "test" for subset in SUBSETS])
    [note] = provenance_notes(seen, moved, "default")
    assert "of another state of this one" in note, "the same videos, in other subsets"


def test_of_several_splits_each_says_what_the_aggregator_saw_of_it(tmp_path):
    splits = [{"1": "train", "2": "test"} if n < 10 else {"1": "test", "2": "train"} for n in range(20)]
    features = {f"v{n:02d}": np.random.default_rng(n).normal(size=(4, 6)) for n in range(20)}
    store = make_store(tmp_path / "store", features, sides=splits, label=[f"{n % 2}" for n in range(20)])
    clips, _ = training_clips(store, split="1")
    seen = trained_on([store], clips.video_ids, 8)
    assert provenance_notes(seen, store, "1") == []
    assert provenance_notes(seen, store, "2") == [
        "transductive: the aggregator also saw 10 test videos, without labels"
    ]
    with pytest.raises(UserError, match="expected one of 1, 2, found '3'"):
        training_clips(store, split="3")
    everything, _ = training_clips(store, split="1", everything=True)
    assert len(everything) == 20


def test_every_probe_of_the_suite_is_in_the_table(tmp_path):
    table, _ = probe_table(store_of(tmp_path / "store"), [aggregator()], QUICK)
    prefixes = {name.partition("_")[0] for name in table.metric_names()}
    assert prefixes == set(PROBES)
    geometry, backbone, untrained, trained, token = table.rows
    assert "mlp_top1" in backbone.metrics
    assert "mlp_top1" not in trained.metrics
    assert "finetuned_top1" in untrained.metrics
    assert "finetuned_top1" in trained.metrics
    assert "finetuned_top1" not in token.metrics
    assert all(len(estimate.each) == 2 for row in table.rows for estimate in row.metrics.values())
    assert geometry.metrics["knn_top1"].each[0] == geometry.metrics["knn_top1"].each[1], (
        "it does not depend on the seed"
    )
