"""Shards merged, resolved and verified: no video is lost, whatever dies on the way."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.stores import FINGERPRINT, corpus_of, features_of, read_clips

from scale_ray.store import maintenance as upkeep
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.maintenance import compact, repair, verify
from scale_ray.store.schema import VideoFeatures


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)


@pytest.fixture
def made(rng) -> dict[str, VideoFeatures]:
    return {video.video_id: video for video in features_of(rng, *"abcdefgh")}


def put(
    store: FeatureStore, made: dict[str, VideoFeatures], ids: str, *, planned: str = "", mode: str = "train"
) -> None:
    """A shard of these videos; `planned` are those that it was to hold, the others having failed."""
    store.commit(store.part_name(mode, list(planned or ids)), mode, [made[video_id] for video_id in ids])


def assert_holds(store: FeatureStore, made: dict[str, VideoFeatures], ids: str, mode: str = "train") -> None:
    clips = read_clips(store, mode)
    assert clips.video_ids == list(ids)
    for video_id, features, positions in zip(clips.video_ids, clips.features, clips.positions, strict=True):
        np.testing.assert_array_equal(features, made[video_id].features)
        np.testing.assert_array_equal(positions, made[video_id].positions)


def parts(store: FeatureStore) -> list[Path]:
    return sorted(Path(store.location, "features").iterdir())


def held(store: FeatureStore) -> list[str]:
    """The ids of every shard, sorted: each once where nothing overlaps."""
    return sorted(itertools.chain.from_iterable(pq.read_table(path)["video_id"].to_pylist() for path in parts(store)))


@pytest.mark.parametrize(
    "shards",
    [
        ["ab", "a", "b"],
        ["abcd", "ab", "cd"],
        ["abc", "cd"],
        ["abc", "cd", "de", "ef"],
        ["ab", "bc", "ca"],
        ["abcd", "cde", "ef", "a"],
        ["abc", "cd", "d"],
        ["ab", "cd", "e", "de"],
    ],
)
def test_of_shards_that_overlap_each_video_stays_once(store, made, shards):
    for ids in shards:
        put(store, made, ids)
    put(store, made, "gh", mode="eval")
    repair(store)
    everything = "".join(sorted(set("".join(shards))))
    assert_holds(store, made, everything)
    assert_holds(store, made, "gh", mode="eval")
    assert held(store) == [*everything, "g", "h"]
    before = parts(store)
    repair(store)
    assert parts(store) == before


def test_shards_of_different_modes_do_not_overlap(store, made):
    for mode in ("train", "augmented", "eval"):
        put(store, made, "ab", mode=mode)
    repair(store)
    assert len(parts(store)) == 3


def test_unfinished_files_are_removed_and_others_are_not(store, made, tmp_path):
    put(store, made, "ab")
    left = Path(store.location, "features", "part-train-1.parquet.0123abcd.unfinished")
    head = Path(store.location, "store.json.0123abcd.unfinished")
    for path in (left, head):
        path.write_bytes(b"half")
    notes = Path(store.location, "notes.txt")
    notes.write_text("mine")
    repair(store)
    assert not left.exists()
    assert not head.exists()
    assert notes.exists()
    assert_holds(store, made, "ab")


def test_a_merged_store_holds_the_same_in_fewer_shards(store, made):
    for ids in ("ce", "a", "bdf"):
        put(store, made, ids)
    put(store, made, "gh", mode="eval")
    store.replace_videos(corpus_of(**dict.fromkeys("abcdefgh", "x")))
    videos = store.videos()
    assert compact(store) == (4, 2)
    assert_holds(store, made, "abcdef")
    assert_holds(store, made, "gh", mode="eval")
    assert store.videos().equals(videos)
    assert verify(store) == []
    assert compact(store) == (2, 2)


def test_a_video_that_was_tried_again_survives_the_merger(store, made):
    """Its first shard is named after all that it was to hold, and so is the merged one."""
    put(store, made, "ac", planned="abc")
    put(store, made, "b")
    compact(store)
    assert_holds(store, made, "abc")


def test_shards_are_merged_up_to_the_size(store, made, monkeypatch):
    for video_id in "abcdefgh":
        put(store, made, video_id)
    monkeypatch.setattr(upkeep, "COMPACT_BYTES", int(2.5 * parts(store)[0].stat().st_size))
    before, after = compact(store)
    assert before == 8
    assert after == 3
    assert_holds(store, made, "abcdefgh")


class Died(Exception):
    """The process ended here."""


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_merger_that_dies_leaves_a_readable_store(store, made, monkeypatch, deleted):
    for ids in ("ab", "cd", "e"):
        put(store, made, ids)
    store.replace_videos(corpus_of(**dict.fromkeys("abcde", "x")))
    real, so_far = upkeep.filesystem_of, []

    class Dying:
        def __init__(self, filesystem):
            self._filesystem = filesystem

        def delete_file(self, path):
            if len(so_far) == deleted:
                raise Died
            so_far.append(path)
            self._filesystem.delete_file(path)

        def __getattr__(self, name):
            return getattr(self._filesystem, name)

    monkeypatch.setattr(upkeep, "filesystem_of", lambda location: (Dying(real(location)[0]), real(location)[1]))
    with pytest.raises(Died):
        compact(store)
    monkeypatch.undo()
    assert len(parts(store)) == 4 - deleted
    assert_holds(store, made, "abcde")
    assert store.stored_ids("train") == set("abcde")
    assert any("holds, too" in line for line in verify(store))
    repair(store)
    assert [path.name for path in parts(store)] == [store.part_name("train", "abcde", "merger")]
    assert_holds(store, made, "abcde")
    assert verify(store) == []


def test_every_kind_of_fault_is_found(store, made, rng):
    ill = {name: features_of(rng, name)[0] for name in ("nan", "inf", "away")}
    ill["nan"].features[3, 2] = np.nan
    ill["inf"].positions[0, 6] = np.inf
    put(store, {**made, **ill}, "ab")
    for name in ill:
        store.commit(store.part_name("train", [name]), "train", [ill[name]])
    put(store, made, "bc")
    short = VideoFeatures("d", made["d"].features[:4], made["d"].positions[:4], made["d"].geometry)
    store.commit(store.part_name("train", ["d"]), "train", [short])
    Path(store.location, "features", "part-eval-1.parquet").write_bytes(
        Path(store.location, "features", store.part_name("train", ["a", "b"])).read_bytes()
    )
    store.replace_videos(corpus_of(**dict.fromkeys(["a", "b", "c", "d", "nan", "inf"], "x")))
    wrong = verify(store)
    expected = [
        "holds features that are not finite, such as those of 'nan'",
        "holds positions that are not finite, such as those of 'inf'",
        "holds 'away', which videos.parquet does not know",
        "holds 'b', which part-train-",
        "shards of mode train differ in shape: [(4, 5), (16, 5)]",
        "part-eval-1.parquet: holds clips of another mode than eval",
    ]
    assert all(any(part in line for line in wrong) for part in expected), wrong
    assert len(wrong) == len(expected)


def test_a_changed_byte_anywhere_in_a_shard_is_found_or_harmless(store, made):
    put(store, made, "abc")
    store.replace_videos(corpus_of(**dict.fromkeys("abc", "x")))
    [path] = parts(store)
    content = path.read_bytes()
    found = 0
    places = [0, 2, *range(4, len(content), 61), len(content) - 6, len(content) - 1]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        wrong = verify(store)
        found += bool(wrong)
        if not wrong:
            path_holds = pa.BufferReader(bytes(changed))
            assert pq.read_table(path_holds).equals(pq.read_table(pa.BufferReader(content))), place
    assert found > 0.6 * len(places)
    path.write_bytes(content[: len(content) // 2])
    assert any("cannot be read" in line for line in verify(store))
    path.write_bytes(content)
    assert verify(store) == []
