"""Shards are merged, resolved and verified without losing a video, even if the process dies in between."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.stores import FINGERPRINT, corpus_of, features_of, read_clips

from scale_ray.config import Part
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.stages.store import store as describe
from scale_ray.store import lease, maintenance
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.maintenance import compact, repair, verify
from scale_ray.store.schema import VideoFeatures


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)


@pytest.fixture
def video_features(rng) -> dict[str, VideoFeatures]:
    return {video.video_id: video for video in features_of(rng, *"abcdefgh")}


def put(
    store: FeatureStore, video_features: dict[str, VideoFeatures], ids: str, *, planned: str = "", mode: str = "train"
) -> None:
    """Commit a shard of these videos; `planned` are the videos planned for it, of which the others failed."""
    store.commit(store.part_name(mode, list(planned or ids)), mode, [video_features[video_id] for video_id in ids])


def assert_holds(store: FeatureStore, video_features: dict[str, VideoFeatures], ids: str, mode: str = "train") -> None:
    clips = read_clips(store, mode)
    assert clips.video_ids == list(ids)
    for video_id, features, positions in zip(clips.video_ids, clips.features, clips.positions, strict=True):
        np.testing.assert_array_equal(features, video_features[video_id].features)
        np.testing.assert_array_equal(positions, video_features[video_id].positions)


def parts(store: FeatureStore) -> list[Path]:
    return sorted(Path(store.location, "features").iterdir())


def ids_in_shards(store: FeatureStore) -> list[str]:
    """The ids in all shards, sorted: each once if no shards overlap."""
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
def test_of_shards_that_overlap_each_video_stays_once(store, video_features, shards):
    for ids in shards:
        put(store, video_features, ids)
    put(store, video_features, "gh", mode="eval")
    repair(store)
    everything = "".join(sorted(set("".join(shards))))
    assert_holds(store, video_features, everything)
    assert_holds(store, video_features, "gh", mode="eval")
    assert ids_in_shards(store) == [*everything, "g", "h"]
    before = parts(store)
    repair(store)
    assert parts(store) == before


def test_shards_of_different_modes_do_not_overlap(store, video_features):
    for mode in ("train", "augmented", "eval"):
        put(store, video_features, "ab", mode=mode)
    repair(store)
    assert len(parts(store)) == 3


def test_unfinished_files_are_removed_and_others_are_not(store, video_features, tmp_path):
    put(store, video_features, "ab")
    unfinished_shard = Path(store.location, "features", "part-train-1.parquet.0123abcd.unfinished")
    unfinished_header = Path(store.location, "store.json.0123abcd.unfinished")
    for path in (unfinished_shard, unfinished_header):
        path.write_bytes(b"half")
    notes = Path(store.location, "notes.txt")
    notes.write_text("mine")
    repair(store)
    assert not unfinished_shard.exists()
    assert not unfinished_header.exists()
    assert notes.exists()
    assert_holds(store, video_features, "ab")


def test_while_others_write_their_unfinished_files_are_left_and_shards_that_overlap_are_resolved(store, video_features):
    put(store, video_features, "abc")
    put(store, video_features, "cd")
    unfinished = Path(store.location, "features", "part-train-1.parquet.0123abcd.unfinished")
    unfinished.write_bytes(b"half")
    repair(store, others_write=True)
    assert unfinished.exists()
    unfinished.unlink()
    assert_holds(store, video_features, "abcd")
    assert ids_in_shards(store) == list("abcd")


def test_a_store_that_a_part_is_written_to_is_not_merged(store, video_features, monkeypatch):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.2)
    put(store, video_features, "ab")
    put(store, video_features, "cd")
    before = parts(store)
    with (
        lease.write_lease(store.location, part=Part(1, 2)),
        pytest.raises(UserError, match="of part 1/2"),
    ):
        describe(store.location, compact_shards=True, console=Console(quiet=True))
    assert parts(store) == before


def test_a_merged_store_holds_the_same_in_fewer_shards(store, video_features):
    for ids in ("ce", "a", "bdf"):
        put(store, video_features, ids)
    put(store, video_features, "gh", mode="eval")
    store.replace_videos(corpus_of(**dict.fromkeys("abcdefgh", "x")))
    videos = store.videos()
    assert compact(store) == (4, 2)
    assert_holds(store, video_features, "abcdef")
    assert_holds(store, video_features, "gh", mode="eval")
    assert store.videos().equals(videos)
    assert verify(store) == []
    assert compact(store) == (2, 2)


def test_a_video_that_was_tried_again_survives_the_merger(store, video_features):
    """Both its first shard and the merged one are named after all videos planned for them."""
    put(store, video_features, "ac", planned="abc")
    put(store, video_features, "b")
    compact(store)
    assert_holds(store, video_features, "abc")


def test_shards_are_merged_up_to_the_size(store, video_features, monkeypatch):
    for video_id in "abcdefgh":
        put(store, video_features, video_id)
    monkeypatch.setattr(maintenance, "COMPACT_BYTES", int(2.5 * parts(store)[0].stat().st_size))
    before, after = compact(store)
    assert before == 8
    assert after == 3
    assert_holds(store, video_features, "abcdefgh")


class Died(Exception):
    """The process ended here."""


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_merger_that_dies_leaves_a_readable_store(store, video_features, monkeypatch, deleted):
    for ids in ("ab", "cd", "e"):
        put(store, video_features, ids)
    store.replace_videos(corpus_of(**dict.fromkeys("abcde", "x")))
    real, removed = maintenance.filesystem_of, []

    class Dying:
        def __init__(self, filesystem):
            self._filesystem = filesystem

        def delete_file(self, path):
            if len(removed) == deleted:
                raise Died
            removed.append(path)
            self._filesystem.delete_file(path)

        def __getattr__(self, name):
            return getattr(self._filesystem, name)

    monkeypatch.setattr(maintenance, "filesystem_of", lambda location: (Dying(real(location)[0]), real(location)[1]))
    with pytest.raises(Died):
        compact(store)
    monkeypatch.undo()
    assert len(parts(store)) == 4 - deleted
    assert_holds(store, video_features, "abcde")
    assert store.stored_ids("train") == set("abcde")
    assert any("also holds" in line for line in verify(store))
    repair(store)
    assert [path.name for path in parts(store)] == [store.part_name("train", "abcde", "merger")]
    assert_holds(store, video_features, "abcde")
    assert verify(store) == []


def test_every_kind_of_fault_is_found(store, video_features, rng):
    invalid = {name: features_of(rng, name)[0] for name in ("nan", "inf", "away")}
    invalid["nan"].features[3, 2] = np.nan
    invalid["inf"].positions[0, 6] = np.inf
    put(store, {**video_features, **invalid}, "ab")
    for name in invalid:
        store.commit(store.part_name("train", [name]), "train", [invalid[name]])
    put(store, video_features, "bc")
    short = VideoFeatures(
        "d", video_features["d"].features[:4], video_features["d"].positions[:4], video_features["d"].geometry
    )
    store.commit(store.part_name("train", ["d"]), "train", [short])
    Path(store.location, "features", "part-eval-1.parquet").write_bytes(
        Path(store.location, "features", store.part_name("train", ["a", "b"])).read_bytes()
    )
    store.replace_videos(corpus_of(**dict.fromkeys(["a", "b", "c", "d", "nan", "inf"], "x")))
    faults = verify(store)
    expected = [
        "holds features that are not finite, for example of 'nan'",
        "holds positions that are not finite, for example of 'inf'",
        "holds 'away', which is not in videos.parquet",
        "holds 'b', which part-train-",
        "shards of mode train differ in shape: [(4, 5), (16, 5)]",
        "part-eval-1.parquet: holds clips of another mode than eval",
    ]
    assert all(any(part in line for line in faults) for part in expected), faults
    assert len(faults) == len(expected)


def test_a_changed_byte_anywhere_in_a_shard_is_found_or_harmless(store, video_features):
    put(store, video_features, "abc")
    store.replace_videos(corpus_of(**dict.fromkeys("abc", "x")))
    [path] = parts(store)
    content = path.read_bytes()
    num_detected = 0
    places = [0, 2, *range(4, len(content), 61), len(content) - 6, len(content) - 1]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        faults = verify(store)
        num_detected += bool(faults)
        if not faults:
            changed_file = pa.BufferReader(bytes(changed))
            assert pq.read_table(changed_file).equals(pq.read_table(pa.BufferReader(content))), place
    assert num_detected > 0.6 * len(places)
    path.write_bytes(content[: len(content) // 2])
    assert any("cannot be read" in line for line in verify(store))
    path.write_bytes(content)
    assert verify(store) == []
