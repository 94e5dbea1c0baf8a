"""The folder of shards is one table for other libraries, whatever the mode and the number of clips of a video."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stores import FINGERPRINT, GEOMETRY, corpus_of

from scale_ray.aggregator import Aggregator
from scale_ray.config import AggregatorOptions, Representing, Sampling
from scale_ray.embedding import VectorStore
from scale_ray.errors import UserError
from scale_ray.store import FeatureStore
from scale_ray.store.maintenance import compact, verify
from scale_ray.store.schema import VideoFeatures

# Clips of each video, by mode: those that `extract` writes, and videos that differ in their number of clips.
CLIPS = {
    "train": {"a": Sampling().num_clips("train"), "b": Sampling().num_clips("train")},
    "eval": {"a": Sampling().num_clips("eval"), "ä/c d.mp4": Sampling().num_clips("eval")},
    "augmented": {"a": 3, "e": 1, "f": 7},
}
WIDTH = 6

Rows = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
Reader = Callable[[Path, Path], list[dict]]


@pytest.fixture
def videos(rng: np.random.Generator) -> Rows:
    """Features and positions by id and mode; float16 is exact in the float32 that DuckDB returns."""
    return {
        (video_id, mode): (rng.normal(size=(clips, WIDTH)).astype(np.float16), rng.random((clips, 7), np.float32))
        for mode, videos in CLIPS.items()
        for video_id, clips in videos.items()
    }


@pytest.fixture
def store(tmp_path: Path, videos: Rows) -> FeatureStore:
    store = FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)
    for mode in CLIPS:
        shard = [VideoFeatures(key[0], *arrays, GEOMETRY) for key, arrays in videos.items() if key[1] == mode]
        store.commit(store.part_name(mode, [video.video_id for video in shard]), mode, shard)
    store.replace_videos(corpus_of(**{video_id: "x" for video_id, _ in videos}))
    return store


def assert_holds(rows: list[dict], videos: Rows) -> None:
    assert sorted((row["video_id"], row["mode"]) for row in rows) == sorted(videos)
    for row in rows:
        features, positions = videos[row["video_id"], row["mode"]]
        np.testing.assert_array_equal(np.array(list(row["features"])), features)
        np.testing.assert_array_equal(np.array(list(row["positions"])), positions)
        assert (row["height_px"], row["width_px"], row["duration_s"], row["fps"]) == (120, 160, 8.0, 15.0)


def with_pyarrow(folder: Path, _: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(folder).to_pylist()


def with_pyarrow_dataset(folder: Path, _: Path) -> list[dict]:
    import pyarrow.dataset as ds

    return ds.dataset(folder).to_table().to_pylist()


def with_pandas(folder: Path, _: Path) -> list[dict]:
    import pandas as pd

    return pd.read_parquet(folder).to_dict("records")


def with_duckdb(folder: Path, _: Path) -> list[dict]:
    import duckdb

    with duckdb.connect() as connection:
        table = connection.sql(f"SELECT * FROM '{folder}/*.parquet'")
        return [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]


def with_polars(folder: Path, _: Path) -> list[dict]:
    import polars

    return polars.read_parquet(folder).to_dicts()


def with_datasets(folder: Path, cache: Path) -> list[dict]:
    return list(_dataset(folder / "*.parquet", cache_dir=str(cache)))


def with_streamed_datasets(folder: Path, _: Path) -> list[dict]:
    return list(_dataset(folder / "*.parquet", streaming=True))


def _dataset(files: Path, **options: object) -> Any:
    """One table from files; given a folder, `datasets` makes splits of the modes in the names of its files."""
    from datasets import load_dataset

    return load_dataset("parquet", data_files=str(files), split="train", **options)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the copies that `datasets` makes."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


READERS = [
    with_pyarrow,
    with_pyarrow_dataset,
    with_pandas,
    with_duckdb,
    with_polars,
    with_datasets,
    with_streamed_datasets,
]
of_every_reader = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)


@of_every_reader
def test_all_shards_are_one_table(read: Reader, store: FeatureStore, videos: Rows, cache: Path):
    assert_holds(read(Path(store.location, "features"), cache), videos)


@of_every_reader
def test_merged_shards_are_one_table(read: Reader, store: FeatureStore, videos: Rows, cache: Path):
    videos["z", "augmented"] = tuple(values[:2] for values in videos["a", "train"])
    store.commit("part-augmented-z.parquet", "augmented", [VideoFeatures("z", *videos["z", "augmented"], GEOMETRY)])
    assert compact(store) == (4, 3)
    assert_holds(read(Path(store.location, "features"), cache), videos)


def test_libraries_with_a_type_for_it_keep_float16(store: FeatureStore, cache: Path):
    import pandas as pd
    import polars

    folder = Path(store.location, "features")
    assert pd.read_parquet(folder)["features"][0][0].dtype == np.float16
    assert polars.read_parquet(folder).schema["features"] == polars.List(polars.Array(polars.Float16, WIDTH))
    of_videos = _dataset(folder / "*.parquet", cache_dir=str(cache)).features["features"]
    assert (of_videos.feature.length, of_videos.feature.feature.dtype) == (WIDTH, "float16")


@pytest.mark.parametrize("read", READERS[:-2], ids=lambda read: read.__name__)
def test_the_table_of_videos_is_read_too(read: Reader, store: FeatureStore, tmp_path: Path, cache: Path):
    """But not by `datasets`, which does not read maps, such as the column of splits."""
    assert READERS[-2:] == [with_datasets, with_streamed_datasets]
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "videos.parquet").hardlink_to(Path(store.location, "videos.parquet"))
    rows = read(tmp_path / "videos", cache)
    assert {row["video_id"]: row["label"] for row in rows} == store.labels()


@of_every_reader
def test_the_vectors_of_all_modes_are_one_table(read: Reader, tmp_path: Path, videos: Rows, cache: Path):
    vectors = VectorStore.create(str(tmp_path / "vectors"), {})
    aggregator = Aggregator(WIDTH, AggregatorOptions(width=32))
    vectors.prepare(aggregator, Representing(), per_clip=False, split=None)
    for mode in ("train", "eval"):
        shard = [VideoFeatures(key[0], *arrays, GEOMETRY) for key, arrays in videos.items() if key[1] == mode]
        vectors.commit(f"part-{mode}-1.parquet", mode, shard)
    rows = read(tmp_path / "vectors" / "vectors", cache)
    assert sorted(row["mode"] for row in rows) == ["eval", "eval", "train", "train"]
    assert {len(row["vector"]) for row in rows} == {WIDTH + 32}


def test_verification_names_videos_that_differ_in_their_number_of_clips(store: FeatureStore):
    assert verify(store) == [f"shards of mode augmented differ in shape: {[(n, WIDTH) for n in (1, 3, 7)]}"]


def test_the_header_says_what_positions_and_sizes_are(store: FeatureStore):
    header = json.loads(Path(store.location, "store.json").read_text())
    assert header["positions"] == ["flip", "y0", "x0", "y1", "x1", "t0", "t1"]
    assert "as displayed" in header["sizes"]
    assert "square pixels" in header["sizes"]


def test_folders_of_vectors_keep_their_format(tmp_path: Path):
    """Their columns were one table before; those that exist stay readable."""
    (tmp_path / "vectors.json").write_text(json.dumps({"format": 2, "fingerprint": {}, "made_with": {}}))
    assert VectorStore(str(tmp_path)).stored_ids("train") == set()
    (tmp_path / "vectors.json").write_text(json.dumps({"format": 1, "fingerprint": {}}))
    with pytest.raises(UserError, match="format 2, found 1, made by an older scale-ray: embed again, to another --out"):
        VectorStore(str(tmp_path))
