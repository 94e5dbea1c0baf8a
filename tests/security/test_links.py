"""Links, and names of folders, in a store or a run from elsewhere: nothing is deleted or written where they lead."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from support.attacks import refusal
from support.stores import FINGERPRINT, corpus_of, features_of

from scale_ray.console import Console
from scale_ray.store import FeatureStore, compact, repair, write_lease
from scale_ray.tracking import RunFolder


def make_store(folder: Path, rng, *ids: str) -> FeatureStore:
    store = FeatureStore.create(str(folder), FINGERPRINT)
    for video_id in ids:
        store.commit(store.part_name("train", [video_id]), "train", features_of(rng, video_id))
    store.replace_videos(corpus_of(**dict.fromkeys(ids, "x")))
    return store


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of the user's own, with old files of the names that a store cleans up."""
    folder = tmp_path / "precious"
    folder.mkdir()
    for name in ("package.json", "download.unfinished", f"{'0' * 32}.json"):
        (folder / name).write_text("{}")
        os.utime(folder / name, (time.time() - 1000,) * 2)
    return folder


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_claims_are_not_looked_for_behind_a_link(scheme: str, tmp_path: Path, precious: Path, rng):
    store = make_store(tmp_path / "store", rng, "a")
    Path(store.location, "leases").symlink_to(precious)
    before = files(precious)

    def lease() -> None:
        with write_lease(f"{scheme}{store.location}"):
            pass

    message = refusal(lease)
    assert files(precious) == before
    assert "found a link" in message


@pytest.mark.parametrize("name", ["features", "failures", "clips"])
def test_a_repair_deletes_nothing_behind_a_link(name: str, tmp_path: Path, precious: Path, rng):
    store = FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)
    Path(store.location, name).symlink_to(precious)
    before = files(precious)
    message = refusal(lambda: repair(store))
    assert files(precious) == before
    assert "found a link" in message


def test_a_compaction_does_not_empty_another_store(tmp_path: Path, rng):
    other = make_store(tmp_path / "other", rng, "x", "y", "z")
    hostile = make_store(tmp_path / "hostile", rng, "a", "b")
    Path(hostile.location, "features", "more").symlink_to(Path(other.location, "features"))
    before = files(Path(other.location))
    compact(hostile)
    assert files(Path(other.location)) == before
    for store in (other, hostile):
        assert len(store.stored_ids("train")) == len(store.videos())


@pytest.mark.slow  # on the code before it did not end
def test_links_to_the_folder_itself_do_not_hang(tmp_path: Path, rng):
    store = make_store(tmp_path / "store", rng, "a")
    for name in ("one", "two"):
        Path(store.location, "features", name).symlink_to(".")
    assert store.stored_ids("train") == {"a"}


def test_the_shards_of_a_linked_folder_are_read_and_not_written(tmp_path: Path, rng):
    store = make_store(tmp_path / "store", rng, "a")
    moved = tmp_path / "moved"
    Path(store.location, "features").rename(moved)
    Path(store.location, "features").symlink_to(moved)
    assert store.stored_ids("train") == {"a"}
    before = files(moved)
    message = refusal(lambda: store.commit("part-train-new.parquet", "train", features_of(rng, "b")))
    assert files(moved) == before
    assert "found a link" in message


def test_a_store_may_itself_be_a_link(tmp_path: Path, rng):
    make_store(tmp_path / "store", rng, "a")
    (tmp_path / "link").symlink_to("store")
    store = FeatureStore(str(tmp_path / "link"))
    store.commit(store.part_name("train", ["b"]), "train", features_of(rng, "b"))
    assert store.stored_ids("train") == {"a", "b"}


def test_an_aggregator_is_not_written_through_a_link(tmp_path: Path, precious: Path):
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "aggregator").symlink_to(precious)
    assert "found a link" in refusal(lambda: RunFolder(str(tmp_path / "runs"), "first"))


@pytest.mark.slow  # importing Ray Tune
@pytest.mark.parametrize("folder", ["trials", "tune"])
def test_a_sweep_writes_nothing_through_a_link(folder: str, tmp_path: Path, precious: Path, rng):
    from scale_ray.config import SweepConfig
    from scale_ray.stages.sweep import sweep

    store = make_store(tmp_path / "store", rng, *(f"v{number}" for number in range(12)))
    (tmp_path / "runs" / "sweep").mkdir(parents=True)
    (tmp_path / "runs" / "sweep" / folder).symlink_to(precious)
    runs = str(tmp_path / "runs")
    message = refusal(lambda: sweep(store.location, runs=runs, config=SweepConfig(), console=Console(quiet=True)))
    assert "found a link" in message


@pytest.mark.slow  # importing Ray Train
@pytest.mark.parametrize("attack", ["name", "link"])
def test_old_checkpoints_are_plain_folders(attack: str, tmp_path: Path):
    """Ray Train deletes the old checkpoints that its snapshot names."""
    from scale_ray.distributed.workers import _check_checkpoints

    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    name = "../../precious" if attack == "name" else "checkpoint_1"
    if attack == "link":
        (checkpoints / name).symlink_to(tmp_path / "precious")
    snapshot = {"checkpoint_results": [{"checkpoint_dir_name": name, "metrics": {"loss": 1.0}}]}
    (checkpoints / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    message = refusal(lambda: _check_checkpoints(str(tmp_path / "run")))
    assert ("expected plain names of checkpoints" if attack == "name" else "found a link") in message
    snapshot["checkpoint_results"][0]["checkpoint_dir_name"] = "checkpoint_2026-11-26_10-00-00.000001"
    (checkpoints / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    _check_checkpoints(str(tmp_path / "run"))
