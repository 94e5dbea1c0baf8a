import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from support.stores import FINGERPRINT, corpus_of, features_of, read_clips

from scale_ray.config import Sampling
from scale_ray.errors import RunFailed, UserError
from scale_ray.store import shard_store
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import Failure, fingerprint_of


@pytest.fixture
def store(tmp_path):
    return FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)


def test_what_is_committed_is_read_back_in_order(store, rng):
    videos = features_of(rng, "b", "a")
    store.commit(store.part_name("train", ["b", "a"]), "train", videos)
    clips = read_clips(store, "train")
    assert clips.video_ids == ["a", "b"]
    assert clips.features.dtype == np.float16
    np.testing.assert_array_equal(clips.features[1], videos[0].features)
    np.testing.assert_array_equal(clips.positions[0], videos[1].positions)
    assert store.stored_ids("train") == {"a", "b"}
    assert store.stored_ids("eval") == set()


def test_committing_a_shard_again_replaces_it(store, rng):
    for _ in range(2):
        store.commit(store.part_name("train", ["a", "b"]), "train", features_of(rng, "a", "b"))
    assert read_clips(store, "train").video_ids == ["a", "b"]


def test_plain_pyarrow_reads_the_features(store, rng):
    videos = features_of(rng, "a", "b")
    store.commit(store.part_name("train", ["a", "b"]), "train", videos)
    table = pyarrow.dataset.dataset(f"{store.location}/features").to_table()
    assert table.schema.field("features").type == pa.list_(pa.list_(pa.float16(), 5))
    assert table.schema.field("positions").type == pa.list_(pa.list_(pa.float32(), 7))
    np.testing.assert_array_equal(table["features"].to_pylist(), [video.features for video in videos])
    assert table["duration_s"].to_pylist() == [8.0, 8.0]


def test_a_write_that_dies_leaves_nothing(store, rng, monkeypatch):
    def dies(table, file, **_):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", dies)
    with pytest.raises(RunFailed, match="No space"):
        store.commit("part-train-x.parquet", "train", features_of(rng, "a"))
    monkeypatch.undo()
    assert read_clips(store, "train").video_ids == []
    assert not list(Path(store.location, "features").iterdir())


def test_another_fingerprint_is_refused_naming_what_differs(store):
    other = fingerprint_of({"backbone": "tiny", "weights": "sha256:1"}, Sampling(stride=2))
    with pytest.raises(UserError, match=r"weights 'none' in the store, 'sha256:1' asked for; .*stride 4 in the store"):
        FeatureStore.create(store.location, other)


def test_a_folder_with_other_files_is_not_made_a_store(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="found other files"):
        FeatureStore.create(str(tmp_path), FINGERPRINT)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_no_store_and_a_future_format_are_refused(tmp_path):
    with pytest.raises(UserError, match="found none"):
        FeatureStore(str(tmp_path))
    (tmp_path / "store.json").write_text(json.dumps({"format": 99, "fingerprint": {}}))
    with pytest.raises(UserError, match="expected store format 3, found 99, made by a newer scale-ray: update"):
        FeatureStore(str(tmp_path))


def test_a_corrected_corpus_corrects_the_videos_and_keeps_the_others(store, rng):
    store.commit(store.part_name("train", ["a", "b"]), "train", features_of(rng, "a", "b"))
    assert store.replace_videos(corpus_of(a="x", b="y"))
    assert not store.replace_videos(corpus_of(a="x", b="y"))
    assert store.replace_videos(corpus_of(b="z"))
    assert store.labels() == {"a": "x", "b": "z"}
    assert store.videos()["duration_s"].to_pylist() == [8.0, 8.0]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"fingerprint": {}}', '{"format": 3}', '{"format": 3, "fingerprint": 5}']
)
def test_a_damaged_header_is_one_line(tmp_path, text):
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(UserError, match=r"store.json: expected .*, found ") as refused:
        FeatureStore(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_the_geometry_is_what_was_measured_whatever_the_manifest_says(store, rng):
    store.commit(store.part_name("train", ["a"]), "train", features_of(rng, "a"))
    assert store.replace_videos(corpus_of(a="x").append_column("duration_s", pa.array([99.0])))
    assert store.videos()["duration_s"].to_pylist() == [8.0]


def test_the_table_of_videos_is_read_once_and_again_when_it_has_changed(store, monkeypatch):
    read = []
    real = shard_store.read_parquet
    monkeypatch.setattr(shard_store, "read_parquet", lambda *given: read.append(given) or real(*given))
    store.replace_videos(corpus_of(a="x", b="y"))
    other = FeatureStore(store.location)
    assert (other.labels(), other.groups(), len(other.splits())) == ({"a": "x", "b": "y"}, {"a": "a", "b": "b"}, 2)
    assert len(read) == 1
    store.replace_videos(corpus_of(a="z"))
    assert other.labels() == {"a": "z", "b": "y"}


def test_the_newest_ledger_entry_counts_until_the_video_is_done(store, rng):
    for attempt in (1, 2):
        store.add_failures([Failure("a", "train", "/videos/a", "open", f"reason {attempt}", "", attempt)])
    assert [(entry.reason, entry.attempts) for entry in store.failures()] == [("reason 2", 2)]
    store.commit(store.part_name("train", ["a"]), "train", features_of(rng, "a"))
    assert store.failures() == []


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_store_is_refused_in_one_line_that_says_what_to_do(store, version):
    header = Path(store.location, "store.json")
    header.write_text(json.dumps({**json.loads(header.read_text()), "format": version}))
    line = f"store format 3, found {version}, made by an older scale-ray: extract again, to another --store"
    for use in (lambda: FeatureStore(store.location), lambda: FeatureStore.create(store.location, FINGERPRINT)):
        with pytest.raises(UserError, match=line) as refused:
            use()
        assert "\n" not in str(refused.value)


def test_several_writers_may_make_a_store_at_the_same_moment(tmp_path):
    """One that finds the header of another unfinished, or finished since it looked, opens the same store."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "store.json.0123abcd.unfinished").write_bytes(b"half")
    FeatureStore.create(str(tmp_path / "s"), FINGERPRINT)
    ready = threading.Barrier(8)

    def make(_: int) -> None:
        ready.wait(timeout=30)
        FeatureStore.create(str(tmp_path / "new"), FINGERPRINT)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make, range(8)))
    assert FeatureStore(str(tmp_path / "new")).fingerprint == FINGERPRINT
