"""The ingest mode must not change the training."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from scale_ray.aggregator import normalised_positions
from scale_ray.clip_sets.batches import Batch, Source, WorkerSlice
from scale_ray.clip_sets.sources import ResidentClips, StreamedClips, open_source, prefetched
from scale_ray.clips import VideoGeometry
from scale_ray.config import Ingest, Sets
from scale_ray.errors import UserError
from scale_ray.store.clip_reader import StoredClips, training_clips
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures

CPU = torch.device("cpu")
SETS = Sets(set_size=2, mask_ratio=0.3)
NUM_VIDEOS, NUM_CLIPS, WIDTH = 23, 6, 5


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Twenty-three videos in five shards, not in the order of their ids."""
    rng = np.random.default_rng(0)
    store = FeatureStore.create(str(tmp_path / "store"), {"backbone": "b", "weights": "w"})
    ids = [f"v{number:02d}" for number in rng.permutation(NUM_VIDEOS)]
    for part in range(5):
        videos = [
            VideoFeatures(
                video_id,
                rng.normal(size=(NUM_CLIPS, WIDTH)).astype(np.float16),
                rng.random((NUM_CLIPS, 7), dtype=np.float32) * 200,
                VideoGeometry(120, 160, 4.0, 30.0),
            )
            for video_id in ids[part::5]
        ]
        store.commit(store.part_name("train", [video.video_id for video in videos]), "train", videos)
    return store


def batches_of(source: Source, worker_slice: WorkerSlice, **changes) -> list[Batch]:
    return list(source.batches(worker_slice, SETS, **{"seed": 0, "epoch": 0, "first_step": 0} | changes))


def assert_equal(actual: list[Batch], expected: list[Batch]) -> None:
    assert len(actual) == len(expected) > 0
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.videos.ids() == theirs.videos.ids()
        for name in ("features_SVD", "positions_SV7", "masked_SV"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


def contents_by_video(batches: list[Batch]) -> dict[str, tuple[bytes, bytes]]:
    """Features and masks of both sets, per video."""
    contents = {}
    for batch in batches:
        num_videos = len(batch.videos.rows_B)
        for row, video_id in enumerate(batch.videos.ids()):
            assert video_id not in contents, "a video is used once per epoch"
            sets = [row, row + num_videos]
            contents[video_id] = (batch.features_SVD[sets].numpy().tobytes(), batch.masked_SV[sets].numpy().tobytes())
    return contents


def test_memory_and_disk_give_the_same_batches(store, tmp_path):
    stored = StoredClips(store, "train")
    worker_slice = WorkerSlice(4, 0, 1)
    resident = ResidentClips.from_clips(stored.read(), CPU)
    expected = batches_of(resident, worker_slice)
    assert len(expected) == 5
    mapped = open_source(stored, Ingest(ingest="disk", cache=str(tmp_path / "cache")), CPU)
    assert mapped.ingest_mode == "disk"
    assert_equal(batches_of(mapped, worker_slice), expected)
    files = list((tmp_path / "cache").rglob("*.npy"))
    assert len(files) == 2
    times = [file.stat().st_mtime_ns for file in files]
    again = open_source(stored, Ingest(ingest="disk", cache=str(tmp_path / "cache")), CPU)
    assert_equal(batches_of(again, worker_slice), expected)
    assert [file.stat().st_mtime_ns for file in files] == times


def test_positions_are_normalised_and_features_are_those_of_the_store(store):
    stored = StoredClips(store, "train")
    raw = stored.read()
    resident = ResidentClips.from_clips(raw, CPU)
    batch = resident.draw(torch.tensor([3, 7]), SETS, seed=0, epoch=0)
    assert batch.features_SVD.shape == (4, 2, WIDTH)
    assert batch.features_SVD.dtype == torch.float32
    for row, place in enumerate((3, 7)):
        for features in (batch.features_SVD[row], batch.features_SVD[row + 2]):
            for feature in features.numpy():
                assert (raw.features[place].astype(np.float32) == feature).all(1).any()
    normalised = normalised_positions(torch.from_numpy(raw.positions))
    for row, place in enumerate((3, 7)):
        for position in batch.positions_SV7[[row, row + 2]].flatten(0, 1):
            assert (normalised[place] == position).all(1).any()


@pytest.mark.parametrize("ingest_mode", ["memory", "disk", "stream"])
def test_batches_say_which_videos_are_of_one_group(store, ingest_mode, tmp_path):
    stored = StoredClips(store, "train")
    groups = {video_id: f"group {video_id[-1]}" for video_id in stored.video_ids}
    options = Ingest(ingest=ingest_mode, cache=str(tmp_path / "cache"))
    batches = batches_of(open_source(stored, options, CPU, groups=groups), WorkerSlice(4, 0, 1))
    assert len(batches) == 5
    group_of_hash: dict[int, str] = {}
    seen = set()
    for batch in batches:
        ids = batch.videos.ids()
        seen |= {groups[video_id] for video_id in ids}
        for video_id, (group, _) in zip(ids, batch.owners_B2.tolist(), strict=True):
            assert group_of_hash.setdefault(group, groups[video_id]) == groups[video_id]
        whole = torch.cat([part.owners_B2 for part in batch.parts(3)])
        assert torch.equal(whole, batch.owners_B2)
        assert len(set(batch.owners_B2[:, 1].tolist())) == len(ids)
    assert len(group_of_hash) == len(seen) > 5
    assert batches_of(open_source(stored, options, CPU), WorkerSlice(4, 0, 1))[0].owners_B2 is None


@pytest.mark.parametrize("ingest_mode", ["memory", "stream"])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_epoch_sees_every_video_once_but_for_the_tail(store, ingest_mode, workers):
    stored = StoredClips(store, "train")
    source = open_source(stored, Ingest(ingest=ingest_mode), CPU)
    batches_of_workers = [batches_of(source, WorkerSlice(4, rank, workers)) for rank in range(workers)]
    assert {len(batches) for batches in batches_of_workers} == {5}, "every worker does the same number of steps"
    for step in range(5):
        assert sum(len(batches[step].videos.rows_B) for batches in batches_of_workers) == 4
    together = contents_by_video([batch for batches in batches_of_workers for batch in batches])
    assert len(together) == 20
    # Sets and masks depend on the video, not on the ingest mode, the worker or the step.
    resident = ResidentClips.from_clips(stored.read(), CPU)
    expected = contents_by_video([resident.draw(torch.arange(NUM_VIDEOS), SETS, seed=0, epoch=0)])
    assert together == {video_id: expected[video_id] for video_id in together}
    second_epoch = batches_of(source, WorkerSlice(4, 0, workers), epoch=1)
    assert [batch.videos.ids() for batch in second_epoch] != [batch.videos.ids() for batch in batches_of_workers[0]]


@pytest.mark.parametrize("window_videos", [1, 5, 9, 100])
def test_a_stream_goes_on_in_mid_epoch_whatever_the_window(store, window_videos):
    stored = StoredClips(store, "train")
    video_bytes = stored.num_bytes // NUM_VIDEOS
    source = StreamedClips(stored, CPU, window_videos * video_bytes)
    for rank in (0, 1):
        whole = batches_of(source, WorkerSlice(4, rank, 2))
        for first_step in (1, 2, 4):
            rest = batches_of(source, WorkerSlice(4, rank, 2), first_step=first_step)
            assert_equal(rest, whole[first_step:])


def test_a_stream_shuffles_across_shards_within_its_window(store):
    stored = StoredClips(store, "train")
    shard_of = {stored.video_ids[place]: shard for shard, part in enumerate(stored.parts) for place in part.places}
    [first, *_] = batches_of(StreamedClips(stored, CPU, 2**20), WorkerSlice(10, 0, 1))
    assert len({shard_of[video_id] for video_id in first.videos.ids()}) > 2


def test_the_way_is_the_first_for_which_there_is_room(store, tmp_path, monkeypatch):
    stored = StoredClips(store, "train")
    options = Ingest(cache=str(tmp_path / "cache"))
    assert open_source(stored, options, CPU).ingest_mode == "memory"

    class Memory:
        available = stored.num_bytes

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    assert open_source(stored, options, CPU).ingest_mode == "disk"
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": stored.num_bytes})())
    assert open_source(stored, options, CPU).ingest_mode == "stream"


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(store, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"cache: expected space for .* found: No space left on device; use another"):
        open_source(StoredClips(store, "train"), Ingest(ingest="disk", cache=str(tmp_path / "cache")), CPU)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".npy", ".unfinished")]


def test_a_damaged_shard_is_one_clear_line(store, tmp_path):
    """First in its data, while the footer of the Parquet file is intact; then cut in half."""
    part = Path(store.parts("features/part-train-")[1])
    whole = part.read_bytes()
    stored = StoredClips(store, "train")
    for ingest_mode in ("memory", "disk", "stream"):
        part.write_bytes(whole[:200] + bytes(byte ^ 255 for byte in whole[200:400]) + whole[400:])
        with pytest.raises(UserError, match=f"{part.name}: expected a whole shard, found one that cannot be read"):
            batches_of(
                open_source(stored, Ingest(ingest=ingest_mode, cache=str(tmp_path / "cache")), CPU),
                WorkerSlice(23, 0, 1),
            )
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{part.name}: expected a whole shard"):
        StoredClips(store, "train")


def test_groups_are_held_out_whole(store):
    import pyarrow as pa

    from scale_ray.corpus.corpus import VIDEO_COLUMNS

    ids = StoredClips(store, "train").video_ids
    rows = [
        {
            "video_id": video_id,
            "path": video_id,
            "group": f"g{number // 2}",
            "splits": [("default", "train" if number < 20 else "test")],
        }
        for number, video_id in enumerate(ids)
    ]
    store.replace_videos(pa.Table.from_pylist(rows, schema=pa.schema(list(VIDEO_COLUMNS))))
    train, held_out = training_clips(store, 0.4)
    assert sorted(train.video_ids + held_out.video_ids) == ids[:20]
    groups = store.groups()
    assert not {groups[i] for i in train.video_ids} & {groups[i] for i in held_out.video_ids}
    assert 0 < len(held_out) < 20
    assert len(training_clips(store)[1]) == 0


def test_what_fails_ahead_of_time_fails_in_its_turn():
    def items():
        yield 1
        raise UserError("broken")

    numbers = prefetched(items())
    assert next(numbers) == 1
    with pytest.raises(UserError, match="broken"):
        next(numbers)
