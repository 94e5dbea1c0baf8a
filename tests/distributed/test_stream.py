"""What a decoding task refuses; nothing here starts Ray."""

from __future__ import annotations

import pyarrow as pa
import pytest

from scale_ray.config import Extraction, Sampling
from scale_ray.distributed import failures
from scale_ray.distributed.stream import _folder_here, decode_block
from scale_ray.errors import UserError


def decoded(folder: str | None, path: str, mode: str = "train") -> list[pa.Table]:
    columns = {"video_id": ["a"], "path": [path], "mode": [mode], "shard": [0], "start_s": [None], "end_s": [None]}
    block = pa.table({**columns, "folder": pa.array([folder], pa.string())})
    sizes_px = {"train": [32], "eval": [32, 37]}
    options = {"sampling": Sampling(clips=2), "sizes_px": sizes_px, "per_block": 1, "extraction": Extraction()}
    return list(decode_block(block, **options))


@pytest.fixture(autouse=True)
def cluster_node(monkeypatch):
    monkeypatch.setattr(failures, "node_name", lambda: "n2 (10.0.0.7)")


def test_a_node_without_the_folder_of_the_videos_is_refused_by_name():
    expected = r"^decoding on node n2 \(10.0.0.7\): expected the folder /data/videos of the videos, .* found none: put "
    with pytest.raises(UserError, match=expected):
        decoded("/data/videos", "/data/videos/a.mp4")


def test_a_missing_file_is_the_failure_of_one_video(tmp_path):
    for folder in (str(tmp_path), None):
        [block] = decoded(folder, str(tmp_path / "gone.mp4"))
        assert "gone.mp4" in block["reason"][0].as_py() or "no such file" in block["reason"][0].as_py().lower()


def test_blocks_of_all_modes_have_the_same_columns_and_the_pixels_of_their_own_sizes(videos):
    """Ray takes the blocks of a data set for one table."""
    path = str(videos / "approach" / "approach_001.mp4")
    [train], [evaluation] = decoded(None, path), decoded(None, path, "eval")
    assert train.schema == evaluation.schema
    lengths = [
        [None if value is None else len(value) for value in table.column(name).to_pylist()]
        for table in (train, evaluation)
        for name in ("pixels_32", "pixels_37")
    ]
    assert lengths == [[2 * 16 * 32 * 32 * 3], [None], [15 * 16 * 32 * 32 * 3], [15 * 16 * 37 * 37 * 3]]


def test_a_folder_counts_only_if_the_machine_of_the_command_has_it(tmp_path):
    assert _folder_here(str(tmp_path / "a.mp4")) == str(tmp_path)
    assert _folder_here("/not/here/a.mp4") is None
    assert _folder_here("s3://bucket/videos/a.mp4") is None
