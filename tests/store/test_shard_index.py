"""Shards are read once for all questions about their videos, and again only if their files have changed."""

from pathlib import Path

import pytest
from support.stores import FINGERPRINT, corpus_of, features_of

from scale_ray.errors import UserError
from scale_ray.store import FeatureStore, compact, repair


@pytest.fixture
def store(tmp_path, rng) -> FeatureStore:
    store = FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)
    for ids in ("ab", "cd", "ef"):
        store.commit(store.part_name("train", ids), "train", features_of(rng, *ids))
    return store


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the shards that are read from now on."""
    read, names = FeatureStore.read_part, []

    def read_part(self, path, *rest):
        names.append(Path(path).name)
        return read(self, path, *rest)

    monkeypatch.setattr(FeatureStore, "read_part", read_part)
    return names


def test_a_shard_is_read_once_for_all_questions(store, reads):
    repair(store)
    assert store.stored_ids("train") == set("abcdef")
    assert set(store.geometries()) == set("abcdef")
    store.replace_videos(corpus_of(**dict.fromkeys("abcdef", "x")))
    assert store.failures() == []
    assert len(reads) == len(set(reads)) == 3


def test_a_new_a_changed_and_a_deleted_shard_are_noticed(store, reads, rng):
    assert store.stored_ids("train") == set("abcdef")
    other = FeatureStore(store.location)
    other.commit(other.part_name("train", "gh"), "train", features_of(rng, *"gh"))
    other.commit(other.part_name("train", "ab"), "train", features_of(rng, "a"))
    Path(store.location, "features", store.part_name("train", "cd")).unlink()
    del reads[:]
    assert store.stored_ids("train") == set("aefgh")
    assert sorted(reads) == sorted([store.part_name("train", "gh"), store.part_name("train", "ab")])
    assert compact(store) == (3, 1)
    assert store.stored_ids("train") == set("aefgh")


def test_a_shard_that_this_store_writes_is_read_again_whatever_its_time(store, rng):
    assert store.stored_ids("train") == set("abcdef")
    store.commit(store.part_name("train", "ab"), "train", features_of(rng, "b", "z"))
    assert store.stored_ids("train") == set("bzcdef")


def test_shards_of_other_columns_are_one_line(store, rng):
    path = Path(store.location, "features", store.part_name("train", "cd"))
    path.write_bytes(b"no shard")
    with pytest.raises(UserError, match=r"part-train-.*\.parquet: expected a whole shard, found one that cannot"):
        store.stored_ids("train")
