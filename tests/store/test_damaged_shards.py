"""A shard whose clips are not those of the others is refused in one line that names it, by every reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.stores import FINGERPRINT, corpus_of, features_of, read_clips

from scale_ray.errors import UserError
from scale_ray.store import FeatureStore, StoredClips
from scale_ray.store.maintenance import compact, unreadable, verify

FEATURES, POSITIONS = pa.list_(pa.list_(pa.float16(), 5)), pa.list_(pa.list_(pa.float32(), 7))


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator) -> FeatureStore:
    """Three shards of two videos each, with 16 clips of 5 features per video."""
    store = FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)
    for ids in ("ab", "cd", "ef"):
        store.commit(store.part_name("train", ids), "train", features_of(rng, *ids))
    store.replace_videos(corpus_of(**dict.fromkeys("abcdef", "x")))
    return store


def column(values: list, type_: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    """Replaces a column by these values."""
    return lambda _: pa.array(values, type_)


def edited(edit: Callable[[list], object], type_: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    """Changes the lists of a column."""

    def replace(old: pa.Array) -> pa.Array:
        lists = old.to_pylist()
        edit(lists)
        return pa.array(lists, type_)

    return replace


def set_null(row: int, *path: int) -> Callable[[list], None]:
    def edit(lists: list) -> None:
        *outer, last = (row, *path)
        for index in outer:
            lists = lists[index]
        lists[last] = None

    return edit


CLIP, POSITION = [1.0] * 5, [1.0] * 7
DAMAGES = {
    "features null": ("features", edited(set_null(1), FEATURES), "found null"),
    "all features null": ("features", column([None, None], FEATURES), "found null"),
    "features without a type": ("features", column([None, None], pa.null()), "of type list<.*found null"),
    "a clip null": ("features", edited(set_null(0, 15), FEATURES), "cannot be read"),
    "a number null": ("features", edited(set_null(1, 2, 4), FEATURES), "found null"),
    "positions null": ("positions", edited(set_null(0), POSITIONS), "found null"),
    "a time null": ("positions", edited(set_null(0, 0, 6), POSITIONS), "found null"),
    "narrow": ("features", column([[CLIP[:1]] * 16] * 2, pa.list_(pa.list_(pa.float16(), 1))), "found 16 x 1 of 'c'"),
    "of no width": ("features", column([[[]] * 16] * 2, pa.list_(pa.list_(pa.float16(), 0))), "cannot be read"),
    "one clip": ("features", column([[CLIP]] * 2, FEATURES), "found 1 x 5 of 'c'"),
    "no clips": ("features", column([[], []], FEATURES), "found 0 x 5 of 'c'"),
    "one of 15 and one of 17": ("features", column([[CLIP] * 15, [CLIP] * 17], FEATURES), "found 15 x 5 of 'c'"),
    "one of another number": ("features", column([[CLIP] * 16, [CLIP] * 8], FEATURES), "found 8 x 5 of 'd'"),
    "fewer positions": ("positions", column([[POSITION] * 16, [POSITION] * 15], POSITIONS), "found 15 x 7 of 'd'"),
    "positions of 6": ("positions", column([[POSITION[:6]] * 16] * 2, pa.list_(pa.list_(pa.float32(), 6))), "of type"),
    "float32 features": ("features", column([[CLIP] * 16] * 2, pa.list_(pa.list_(pa.float32(), 5))), "of type list<"),
    "float64 positions": ("positions", column([[POSITION] * 16] * 2, pa.list_(pa.list_(pa.float64(), 7))), "of type"),
    "lists of lists": ("features", column([[CLIP] * 16] * 2, pa.list_(pa.list_(pa.float16()))), "of type list<"),
    "flat": ("features", column([CLIP] * 2, pa.list_(pa.float16(), 5)), "of type list<"),
    "tensors, as in older stores": (
        "features",
        lambda _: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((2, 16, 5), np.float16)),
        "of type list<",
    ),
    "text": ("features", column(["x", "y"], pa.string()), "of type list<"),
}


def damage(store: FeatureStore, name: str) -> str:
    """Damage the shard of c and d; returns the name of its file."""
    column_name, replace, _ = DAMAGES[name]
    path = Path(store.location, "features", store.part_name("train", "cd"))
    table = pq.read_table(path)
    column = replace(table[column_name].combine_chunks())
    pq.write_table(table.set_column(table.column_names.index(column_name), column_name, column), path)
    return path.name


def refusals(store: FeatureStore) -> list[str]:
    """What each way of reading the clips says."""

    def read_parts() -> None:
        stored = StoredClips(store, "train")
        for number, part in enumerate(stored.parts):
            stored.read_rows(number, 0, len(part.rows))

    messages = []
    for read in (lambda: read_clips(store, "train"), read_parts):
        with pytest.raises(UserError) as refused:
            read()
        messages.append(str(refused.value))
    return messages


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_one_line_that_names_it(name: str, store: FeatureStore):
    file_name = damage(store, name)
    for message in refusals(store):
        assert "\n" not in message
        assert f"{file_name}: expected" in message
        assert "delete it and extract again" in message
        assert re.search(DAMAGES[name][2], message)


@pytest.mark.parametrize("name", DAMAGES)
def test_verification_reports_a_damaged_shard(name: str, store: FeatureStore):
    file_name = damage(store, name)
    [fault, *_] = verify(store)
    assert file_name in fault or "differ in shape" in fault


@pytest.mark.parametrize(
    "name", [name for name, (*_, found) in DAMAGES.items() if "null" in found or "cannot" in found]
)
def test_a_shard_with_null_is_not_merged(name: str, store: FeatureStore):
    file_name = damage(store, name)
    before = sorted(Path(store.location, "features").iterdir())
    with pytest.raises(UserError, match=f"{file_name}: expected .*(found null|cannot be read)"):
        compact(store)
    assert sorted(Path(store.location, "features").iterdir()) == before


@pytest.mark.parametrize("name", [name for name, (*_, found) in DAMAGES.items() if "of type" in found])
def test_a_shard_of_other_types_is_left_out_of_descriptions(name: str, store: FeatureStore):
    file_name = damage(store, name)
    assert [Path(path).name for path in unreadable(store)] == [file_name]


def test_positions_alone_are_checked_too(store: FeatureStore):
    file_name = damage(store, "fewer positions")
    with pytest.raises(UserError, match=f"{file_name}: expected positions of 16 clips x 7 .* found 15 x 7 of 'd'"):
        StoredClips(store, "train").read_positions()


def test_a_shard_without_wanted_videos_is_not_checked(store: FeatureStore):
    damage(store, "one of another number")
    stored = StoredClips(store, "train", {"a", "f"})
    assert stored.read().features.shape == (2, 16, 5)


def test_nullable_or_not_the_lists_are_the_same(store: FeatureStore):
    """Other programs write the same lists with other names of their elements."""
    path = Path(store.location, "features", store.part_name("train", "cd"))
    expected, table = read_clips(store, "train"), pq.read_table(path)
    strict = pa.list_(
        pa.field("element", pa.list_(pa.field("element", pa.float16(), nullable=False), 5), nullable=False)
    )
    table = table.set_column(table.column_names.index("features"), "features", table["features"].cast(strict))
    pq.write_table(table, path)
    np.testing.assert_array_equal(read_clips(store, "train").features, expected.features)


def test_several_row_groups_are_one_shard(store: FeatureStore):
    path = Path(store.location, "features", store.part_name("train", "cd"))
    expected = read_clips(store, "train")
    pq.write_table(pq.read_table(path), path, row_group_size=1)
    found = read_clips(store, "train")
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.positions, expected.positions)
    assert verify(store) == []


def test_a_shard_without_rows_is_no_fault(store: FeatureStore):
    path = Path(store.location, "features", store.part_name("train", "cd"))
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert read_clips(store, "train").video_ids == list("abef")
    assert verify(store) == []
    assert compact(store) == (3, 1)
    assert verify(store) == []
