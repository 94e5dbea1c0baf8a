"""The features of two backbones side by side in one store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.stores import make_store, positions_of

import scale_ray as sr
from scale_ray.aggregator import Aggregator
from scale_ray.cli.main import main
from scale_ray.clips import VideoGeometry
from scale_ray.config import AggregatorOptions
from scale_ray.embedding import VideoModel, backbone_of
from scale_ray.errors import UserError
from scale_ray.pretraining import check_compatible
from scale_ray.store import FeatureStore, StoredClips

IDS = [f"v{n:02d}" for n in range(9)]
SIDES = ["train"] * 6 + ["test"] * 3
POSITIONS = {i: positions_of(np.random.default_rng(n), 4) for n, i in enumerate(IDS)}
SIZES = {i: VideoGeometry(100 + n, 200, 3.0 + n, 25.0) for n, i in enumerate(IDS)}


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(str(ended.value.code))


def store_of(
    folder: Path, ids: list[str], width: int, backbone: str, seed: int = 0, **changed: np.ndarray
) -> FeatureStore:
    features = {i: np.random.default_rng([seed, IDS.index(i)]).normal(size=(4, width)) for i in ids}
    sides = [SIDES[IDS.index(i)] for i in ids]
    made = make_store(
        folder, features, sides=sides, positions={**POSITIONS, **changed}, geometries=SIZES, label=["x"] * len(ids)
    )
    header = folder / "store.json"
    described = json.loads(header.read_text())
    described["fingerprint"].update(backbone=backbone, input_px=width)
    header.write_text(json.dumps(described))
    return FeatureStore(made.location)


@pytest.fixture
def stores(tmp_path) -> tuple[FeatureStore, FeatureStore]:
    return store_of(tmp_path / "a", IDS, 5, "one"), store_of(tmp_path / "b", IDS[1:], 3, "two", seed=1)


def test_joined_features_are_those_of_both_in_turn(stores, tmp_path, capsys):
    first, second = stores
    assert code_of("join", first.location, second.location, "--store", str(tmp_path / "ab")) == 0
    assert "one+two, features 8 wide, 8 videos; 1 that only one store has are left out" in capsys.readouterr().out
    joined = FeatureStore(str(tmp_path / "ab"))
    for mode in ("train", "eval"):
        clips, ours, theirs = (StoredClips(store, mode).read() for store in (joined, first, second))
        assert clips.video_ids == theirs.video_ids
        np.testing.assert_array_equal(clips.features[..., 5:], theirs.features)
        rows = [ours.video_ids.index(video_id) for video_id in clips.video_ids]
        np.testing.assert_array_equal(clips.features[..., :5], ours.features[rows])
        np.testing.assert_array_equal(clips.positions, theirs.positions)
    assert joined.geometries()["v03"] == {**first.geometries()["v03"]}
    assert joined.labels() == first.labels()
    assert code_of("store", joined.location) == 0
    assert "backbone  one+two, weights none+none, 5 px and 3 px, features 8 wide" in capsys.readouterr().out


def test_joining_again_adds_what_is_missing_and_changes_nothing_else(stores, tmp_path):
    first, second = stores
    location = str(tmp_path / "ab")
    assert sr.join(first.location, second.location, location, quiet=True).num_videos == 8
    shards = set(FeatureStore(location).parts("features/part-"))
    third = store_of(tmp_path / "b2", IDS, 3, "two", seed=1)
    result = sr.join(first.location, third.location, location, quiet=True)
    assert (result.num_videos, result.left_out) == (9, 0)
    again = FeatureStore(location)
    assert shards < set(again.parts("features/part-"))
    assert again.stored_ids("train") == set(IDS[:6])


def test_other_clips_of_a_video_are_refused_by_its_name(stores, tmp_path):
    moved = POSITIONS["v04"] + np.array([0, 0, 0, 0, 0, 1, 1], np.float32)
    other = store_of(tmp_path / "c", IDS, 3, "three", v04=moved)
    with pytest.raises(UserError, match=r"expected the same clips of 'v04' in both stores, found clip 0 from"):
        sr.join(stores[0].location, other.location, str(tmp_path / "ac"), quiet=True)


def test_features_of_another_file_are_refused(stores, tmp_path):
    videos = stores[1].videos()
    sizes = [2 if video_id == "v05" else 1 for video_id in videos["video_id"].to_pylist()]
    column = videos.schema.get_field_index("size_bytes")
    stores[1].replace_videos(videos.set_column(column, "size_bytes", pa.array(sizes, pa.int64())))
    with pytest.raises(UserError, match=r"found 1 of other ones, such as 'v05' \(2 bytes in the store, 1 now\)"):
        sr.join(stores[0].location, stores[1].location, str(tmp_path / "ab"), quiet=True)


def test_stores_without_common_videos_leave_nothing_behind(stores, tmp_path):
    other = store_of(tmp_path / "d", IDS[:1], 3, "four")
    with pytest.raises(UserError, match=r"expected features of the videos of .*, found none"):
        sr.join(stores[1].location, other.location, str(tmp_path / "bd"), quiet=True)
    assert not (tmp_path / "bd").exists()


def test_another_sampling_is_refused(stores, tmp_path):
    header = tmp_path / "b" / "store.json"
    described = json.loads(header.read_text())
    described["fingerprint"]["sampling_seed"] = 7
    header.write_text(json.dumps(described))
    assert code_of("join", stores[0].location, stores[1].location, "--store", str(tmp_path / "ab")) == 2
    assert not (tmp_path / "ab").exists()


def test_an_aggregator_of_joined_features_says_that_it_cannot_take_videos(stores, tmp_path):
    sr.join(stores[0].location, stores[1].location, str(tmp_path / "ab"), quiet=True)
    joined = FeatureStore(str(tmp_path / "ab"))
    aggregator = Aggregator(8, AggregatorOptions(width=32), joined.origin)
    check_compatible(joined, aggregator)
    for take_videos in (VideoModel.from_aggregator, lambda model: backbone_of(model.origin)):
        with pytest.raises(UserError, match="expected an aggregator of one backbone, found one of one\\+two: extract"):
            take_videos(aggregator)
    with pytest.raises(UserError, match="expected an aggregator for features of width 5"):
        check_compatible(stores[0], aggregator)
