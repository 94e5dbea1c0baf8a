"""Parquet files from elsewhere: a column whose values Ray's extension type would unpickle.

The payload makes an empty folder.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.attacks import refusal
from support.stores import FINGERPRINT, corpus_of, features_of

from scale_ray.corpus import read_corpus
from scale_ray.errors import UserError
from scale_ray.store import FeatureStore, StoredClips
from scale_ray.tracking import RunFolder

pytestmark = pytest.mark.slow  # importing Ray Data, which registers the type

_NAME = b"ARROW:extension:name"


class Payload:
    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self._marker,)


def pickled_field(name: str) -> pa.Field:
    """A field that any process writes without having the type, and that one with Ray Data reads as pickled objects."""
    metadata = {_NAME: b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    return pa.field(name, pa.large_binary(), metadata=metadata)


def as_pickles(table: pa.Table, column: str, marker: Path) -> pa.Table:
    """The table with every value of a column replaced by the payload."""
    payloads = pa.array([pickle.dumps(Payload(marker))] * len(table), pa.large_binary())
    if column not in table.column_names:
        return table.append_column(pickled_field(column), payloads)
    return table.set_column(table.column_names.index(column), pickled_field(column), payloads)


@pytest.fixture(autouse=True, scope="module")
def _ray_data():
    import ray.data  # noqa: F401


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-ran"


@pytest.fixture
def store(tmp_path: Path, rng) -> FeatureStore:
    store = FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)
    store.commit(store.part_name("train", ["a", "b"]), "train", features_of(rng, "a", "b"))
    store.replace_videos(corpus_of(a="x", b="y"))
    return FeatureStore(store.location)


@pytest.mark.parametrize("column", ["path", "note", "label", "splits"])
def test_a_manifest_runs_no_code(column: str, tmp_path: Path, marker: Path):
    table = as_pickles(pa.table({"path": ["a.mp4"]}), column, marker)
    pq.write_table(table, tmp_path / "videos.parquet")
    message = refusal(lambda: read_corpus(str(tmp_path / "videos.parquet")))
    assert not marker.exists()
    assert f"found the extension type 'ray.data.arrow_pickled_object' in column {column!r}" in message


def test_a_nested_type_runs_no_code_either(tmp_path: Path, marker: Path):
    payloads = pa.array([pickle.dumps(Payload(marker))], pa.large_binary())
    lists = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), payloads, type=pa.list_(pickled_field("item")))
    notes = pa.StructArray.from_arrays([lists], fields=[pa.field("inner", lists.type)])
    pq.write_table(pa.table({"path": ["a.mp4"], "note": notes}), tmp_path / "videos.parquet")
    message = refusal(lambda: read_corpus(str(tmp_path / "videos.parquet")))
    assert not marker.exists()
    assert "in column 'note', which could run code" in message


@pytest.mark.parametrize("column", ["video_id", "label", "splits", "note"])
def test_the_videos_of_a_store_run_no_code(column: str, store: FeatureStore, marker: Path):
    path = Path(store.location, "videos.parquet")
    pq.write_table(as_pickles(pq.read_table(path), column, marker), path)
    message = refusal(lambda: FeatureStore(store.location).videos().to_pylist())
    assert not marker.exists()
    assert "which could run code" in message


@pytest.mark.parametrize("column", ["video_id", "mode", "height_px"])
def test_a_shard_runs_no_code(column: str, store: FeatureStore, marker: Path):
    path = Path(store.parts("features/part-")[0])
    pq.write_table(as_pickles(pq.read_table(path), column, marker), path)
    reads = (lambda: StoredClips(store, "train"), lambda: store.stored_ids("train"), store.geometries)
    messages = [refusal(read) for read in reads]
    assert not marker.exists()
    assert all("which could run code" in message for message in messages)


def test_a_ledger_and_a_history_run_no_code(store: FeatureStore, tmp_path: Path, marker: Path):
    Path(store.location, "failures").mkdir()
    entry = {
        "video_id": "c",
        "mode": "train",
        "path": "",
        "stage": "open",
        "reason": "",
        "exception": "",
        "attempts": 1,
    }
    ledger = as_pickles(pa.Table.from_pylist([entry]), "reason", marker)
    pq.write_table(ledger, Path(store.location, "failures", "part-0.parquet"))
    messages = [refusal(store.failures)]
    run = RunFolder(str(tmp_path / "runs"), "first")
    Path(run.location).mkdir(parents=True)
    pq.write_table(as_pickles(pa.table({"epoch": [1]}), "loss", marker), Path(run.location, "history.parquet"))
    messages.append(refusal(run.history))
    assert not marker.exists()
    assert all("which could run code" in message for message in messages)


def test_a_type_that_is_not_registered_here_is_refused_too(tmp_path: Path):
    """The table could reach a process in which it is."""
    field = pa.field("note", pa.binary(), metadata={_NAME: b"somebody.elses"})
    table = pa.table({"path": ["a.mp4"], "note": [b""]}).cast(pa.schema([("path", pa.string()), field]))
    pq.write_table(table, tmp_path / "videos.parquet")
    with pytest.raises(UserError, match=r"somebody\.elses"):
        read_corpus(str(tmp_path / "videos.parquet"))


def test_plain_columns_of_every_kind_are_read(tmp_path: Path):
    columns = {
        "path": pa.array(["a.mp4"]),
        "lists": pa.array([[1, 2]]),
        "struct": pa.array([{"x": 1, "y": ["z"]}]),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "dictionary": pa.array(["x"]).dictionary_encode(),
        "when": pa.array([np.datetime64("2026-01-01T00:00", "us")]),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2, 3), np.float32)),
        "uuid": pa.array([b"0" * 16], pa.uuid()),
    }
    pq.write_table(pa.table(columns), tmp_path / "videos.parquet")
    assert len(read_corpus(str(tmp_path / "videos.parquet")).videos) == 1
