"""An aggregator that is trained on several stores, each with a weight."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from support.stores import make_store

from scale_ray.clip_sets.batches import Batch, WorkerSlice
from scale_ray.clip_sets.sources import open_source
from scale_ray.config import Ingest, Sets
from scale_ray.errors import UserError
from scale_ray.pretraining import provenance_notes, trained_on
from scale_ray.store import FeatureStore, StoredClips, TrainingStores

CPU, SETS = torch.device("cpu"), Sets(set_size=2)
LARGE, SMALL = [f"a{n:03d}" for n in range(140)], [f"b{n:02d}" for n in range(40)]


def store_of(folder: Path, ids: list[str], width: int = 6, clips: int = 4, test: int = 0) -> FeatureStore:
    features = {i: np.random.default_rng(int(i[1:])).normal(size=(clips, width)) for i in ids}
    return make_store(folder, features, sides=["train"] * (len(ids) - test) + ["test"] * test, label=["x"] * len(ids))


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[FeatureStore]:
    folder = tmp_path_factory.mktemp("stores")
    return [store_of(folder / "large", LARGE), store_of(folder / "small", SMALL)]


def epoch_of(
    stores: list[FeatureStore], weights: tuple[float, ...], ingest: str, cache: Path, epoch: int = 0, workers: int = 1
) -> list[Batch]:
    clips, _ = TrainingStores(stores, weights).training_clips()
    batches = []
    for rank in range(workers):
        source = open_source(clips, Ingest(ingest=ingest, cache=str(cache)), CPU)
        batches += source.batches(WorkerSlice(10, rank, workers), SETS, seed=0, epoch=epoch, first_step=0)
    return batches


def ids_of(batches: list[Batch]) -> list[str]:
    return [video_id for batch in batches for video_id in batch.videos.ids()]


@pytest.mark.parametrize("ingest", ["memory", "disk", "stream"])
def test_an_epoch_has_every_video_of_all_stores_with_its_own_clips(stores, ingest, tmp_path):
    batches = epoch_of(stores, (), ingest, tmp_path)
    assert sorted(ids_of(batches)) == sorted([*LARGE, *SMALL])
    stored = {i: clips for store in stores for i, clips in _clips_by_id(StoredClips(store, "train")).items()}
    for batch in batches:
        features = batch.features_SVD.numpy()
        for row, video_id in enumerate(batch.videos.ids()):
            both = np.concatenate([features[row], features[row + len(batch.videos.rows_B)]])
            # Two sets of two clips: all four clips of the video, in some order.
            assert sorted(map(tuple, both)) == sorted(map(tuple, stored[video_id].astype(np.float32)))


def _clips_by_id(clips: StoredClips) -> dict[str, np.ndarray]:
    return dict(zip(clips.video_ids, clips.read().features, strict=True))


@pytest.mark.parametrize("ingest", ["memory", "disk", "stream"])
def test_a_weight_is_the_share_of_an_epochs_videos(stores, ingest, tmp_path):
    weights = (1.0, 4.0)  # an epoch has a quarter of the large store: 35 of 140, and all 40 of the small one
    seen: Counter[str] = Counter()
    for epoch in range(8):
        ids = ids_of(epoch_of(stores, weights, ingest, tmp_path, epoch))
        assert len(set(ids)) == len(ids) == 70, "75 videos in batches of 10"
        assert len({*ids} & {*SMALL}) in range(35, 41)
        assert len({*ids} & {*LARGE}) in range(30, 36)
        seen.update(ids)
    assert len({*seen} & {*LARGE}) > 110, "other videos in each epoch"
    assert ids_of(epoch_of(stores, weights, ingest, tmp_path)) == ids_of(epoch_of(stores, weights, ingest, tmp_path))


@pytest.mark.parametrize("ingest", ["memory", "disk", "stream"])
def test_a_small_weight_leaves_the_same_number_of_videos_however_small_the_shards(stores, ingest, tmp_path):
    # An epoch has 2 of the 140 videos, which lie in shards of 64, 64 and 12: 1 in 70 of each would be none or too many.
    for epoch in range(3):
        ids = ids_of(epoch_of([stores[1], stores[0]], (70.0, 1.0), ingest, tmp_path, epoch))
        assert len(ids) == 40, "42 videos in batches of 10"
        assert len({*ids} & {*LARGE}) <= 2
    clips, _ = TrainingStores([stores[1], stores[0]], (70.0, 1.0)).training_clips()
    assert open_source(clips, Ingest(ingest=ingest, cache=str(tmp_path)), CPU).num_videos == 42


@pytest.mark.parametrize("ingest", ["memory", "stream"])
def test_two_workers_share_an_epochs_videos(stores, ingest, tmp_path):
    ids = ids_of(epoch_of(stores, (1.0, 4.0), ingest, tmp_path, workers=2))
    assert len(set(ids)) == len(ids) == 70


def test_equal_weights_change_nothing(stores, tmp_path):
    assert ids_of(epoch_of(stores, (), "memory", tmp_path)) == ids_of(epoch_of(stores, (2.0, 2.0), "memory", tmp_path))


def test_some_videos_of_several_stores_are_read_in_the_order_asked_for(stores):
    clips, _ = TrainingStores(stores).training_clips()
    wanted = ["b07", "a100", "b00", "a003"]
    read = clips.read_videos(wanted)
    everything = clips.read()
    rows = [everything.video_ids.index(video_id) for video_id in wanted]
    assert read.video_ids == wanted
    np.testing.assert_array_equal(read.features, everything.features[rows])
    np.testing.assert_array_equal(read.positions, everything.positions[rows])
    np.testing.assert_array_equal(clips.read_positions(), everything.positions)


def test_held_out_videos_come_from_all_stores(stores):
    train, held_out = TrainingStores(stores, (1.0, 2.0)).training_clips(0.3)
    assert sorted([*train.video_ids, *held_out.video_ids]) == sorted([*LARGE, *SMALL])
    assert {video_id[0] for video_id in held_out.video_ids} == {"a", "b"}


def test_stores_that_do_not_fit_together_are_refused(tmp_path, stores):
    again = store_of(tmp_path / "again", LARGE[:3])
    with pytest.raises(UserError, match="expected stores without common videos, found 3 ids that are in two of them"):
        TrainingStores([stores[0], again]).training_clips()
    wider = store_of(tmp_path / "wider", ["c1", "c2"], width=7)
    with pytest.raises(UserError, match=r"same number of clips .*, found 4 x 6 in .* and 4 x 7"):
        TrainingStores([stores[0], wider]).training_clips()
    other = FeatureStore.create(str(tmp_path / "other"), {**stores[0].fingerprint, "backbone": "another"})
    with pytest.raises(UserError, match=r"of one backbone and sampling, found backbone 'tiny' in .* and 'another' in"):
        TrainingStores([stores[0], other])
    with pytest.raises(UserError, match=r"of every store in an epoch, found 40 in .*, of which an epoch uses none"):
        TrainingStores(stores, (1.0, 0.001)).training_clips()
    tested = store_of(tmp_path / "tested", ["c1", "c2"], test=2)
    with pytest.raises(
        UserError, match=r"of every store in an epoch, found 0 in .*tested, of which an epoch uses none"
    ):
        TrainingStores([stores[0], tested]).training_clips()
    with pytest.raises(UserError, match="store_weights: expected one per store, 2, found 3"):
        TrainingStores(stores, (1.0, 2.0, 3.0))


def test_a_folder_with_a_comma_in_its_name_is_one_store(tmp_path):
    store = store_of(tmp_path / "one, or two", ["c1", "c2"])
    assert [member.location for member in TrainingStores.open(store.location).members] == [store.location]


def test_notes_tell_what_was_seen_of_each_store(tmp_path, stores):
    tested = store_of(tmp_path / "tested", [f"c{n}" for n in range(5)], test=2)
    both = [stores[1], tested]
    ids = [*SMALL, "c0", "c1", "c2"]
    assert provenance_notes(trained_on(both, ids, 2), tested, "default") == [
        "the aggregator was also trained on 40 videos of other stores"
    ]
    assert provenance_notes(trained_on(both, [*ids, "c3"], 2), tested, "default") == [
        "the aggregator was also trained on 40 videos of other stores",
        "transductive: the aggregator also saw 1 test videos, without labels",
    ]
    assert provenance_notes(trained_on(both, ids, 2), stores[0], "default") == [
        "the aggregator was trained on 43 videos of another corpus, or of another state of this one"
    ]
