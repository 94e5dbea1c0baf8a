"""Clips of several modes: each alone, and two as one pool per video, in every ingest mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scale_ray.aggregator import normalised_positions
from scale_ray.clip_sets.batches import Batch, WorkerSlice
from scale_ray.clip_sets.draws import draw_sets, video_keys
from scale_ray.clip_sets.sources import open_source
from scale_ray.clips import VideoGeometry
from scale_ray.config import Ingest, Sets
from scale_ray.errors import UserError
from scale_ray.store import check_modes, num_incomplete, open_clips
from scale_ray.store.clip_reader import PooledClips, StoredClips
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures

CPU = torch.device("cpu")
POOL = "train+augmented"
SETS = Sets(set_size=2, mask_ratio=0.3)
NUM_CLIPS, WIDTH = {"train": 6, "augmented": 5}, 3
IDS = {"train": [f"v{number:02d}" for number in range(22)], "augmented": [f"v{number:02d}" for number in range(3, 24)]}
BOTH = sorted(set(IDS["train"]) & set(IDS["augmented"]))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Videos with clips of either mode or of both, in shards that differ between the modes."""
    rng = np.random.default_rng(0)
    store = FeatureStore.create(str(tmp_path / "store"), {"backbone": "b", "weights": "w"})
    for mode, num_shards in (("train", 4), ("augmented", 3)):
        shuffled = [IDS[mode][number] for number in rng.permutation(len(IDS[mode]))]
        # Boxes and times of one mode reach further than those of the other.
        reach = 200 if mode == "train" else 300
        for shard in range(num_shards):
            videos = [
                VideoFeatures(
                    video_id,
                    rng.normal(size=(NUM_CLIPS[mode], WIDTH)).astype(np.float16),
                    rng.random((NUM_CLIPS[mode], 7), dtype=np.float32) * reach,
                    VideoGeometry(300, 300, 300.0, 30.0),
                )
                for video_id in shuffled[shard::num_shards]
            ]
            store.commit(store.part_name(mode, [video.video_id for video in videos]), mode, videos)
    return store


def batches_of(store: FeatureStore, mode: str, ingest: str, cache: Path, batch_size: int = 4) -> list[Batch]:
    source = open_source(open_clips(store, mode), Ingest(ingest=ingest, cache=str(cache)), CPU)
    assert source.num_clips == sum(NUM_CLIPS[name] for name in mode.split("+"))
    return list(source.batches(WorkerSlice(batch_size, 0, 1), SETS, seed=0, epoch=0, first_step=0))


def sets_by_video(batches: list[Batch]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Features, positions and masks of both sets, per video."""
    found = {}
    for batch in batches:
        for row, video_id in enumerate(batch.videos.ids()):
            rows = [row, row + len(batch.videos.rows_B)]
            parts = (batch.features_SVD, batch.positions_SV7, batch.masked_SV)
            found[video_id] = tuple(values[rows].numpy() for values in parts)
    return found


def test_a_pool_holds_the_clips_of_both_modes_of_the_videos_that_have_both(store):
    pool = open_clips(store, POOL)
    assert isinstance(pool, PooledClips)
    assert (pool.video_ids, pool.num_clips, pool.feature_width) == (BOTH, 11, WIDTH)
    clips = pool.read()
    for mode, part in (("train", slice(0, 6)), ("augmented", slice(6, 11))):
        alone = StoredClips(store, mode).read()
        rows = [alone.video_ids.index(video_id) for video_id in BOTH]
        np.testing.assert_array_equal(clips.features[:, part], alone.features[rows])
        np.testing.assert_array_equal(clips.positions[:, part], alone.positions[rows])
    np.testing.assert_array_equal(pool.read_positions(), clips.positions)
    some = [BOTH[7], BOTH[2], BOTH[11]]
    chosen = pool.read_videos(some)
    assert chosen.video_ids == some
    np.testing.assert_array_equal(chosen.features, clips.features[[7, 2, 11]])
    np.testing.assert_array_equal(chosen.positions, clips.positions[[7, 2, 11]])
    assert open_clips(store, POOL, {"v00", "v05", "v23"}).video_ids == ["v05"]


@pytest.mark.parametrize("ingest", ["memory", "disk", "stream"])
@pytest.mark.parametrize("mode", ["train", "augmented", POOL])
def test_every_ingest_mode_draws_the_same_sets_of_the_same_pool(store, tmp_path, ingest, mode):
    found = sets_by_video(batches_of(store, mode, ingest, tmp_path / "cache"))
    clips = open_clips(store, mode).read()
    assert set(found) <= set(clips.video_ids)
    assert len(found) == len(clips.video_ids) // 4 * 4
    positions = normalised_positions(torch.from_numpy(clips.positions)).numpy()
    for video_id, (features, positions_of_sets, masked) in found.items():
        place = clips.video_ids.index(video_id)
        drawn = draw_sets(video_keys([video_id]), clips.features.shape[1], SETS, seed=0, epoch=0)
        np.testing.assert_array_equal(features, clips.features[place][drawn.clips_SV].astype(np.float32))
        np.testing.assert_array_equal(positions_of_sets, positions[place][drawn.clips_SV])
        np.testing.assert_array_equal(masked, drawn.masked_SV)


def test_positions_are_normalised_over_the_clips_of_the_pool(store, tmp_path):
    """The smallest start of all its clips is 0 and the largest end 1, which one mode alone would place elsewhere."""
    pool = open_source(open_clips(store, POOL), Ingest(ingest="memory"), CPU)
    starts, ends = pool.positions[..., [1, 2, 5]], pool.positions[..., [3, 4, 6]]
    torch.testing.assert_close(starts.amin(1), torch.zeros(len(BOTH), 3))
    torch.testing.assert_close(ends.amax(1), torch.ones(len(BOTH), 3))
    alone = open_source(open_clips(store, "train", set(BOTH)), Ingest(ingest="memory"), CPU)
    assert (pool.positions[:, :6] - alone.positions).abs().max() > 0.1


def test_mapped_files_of_one_mode_are_not_taken_for_those_of_another(store, tmp_path):
    """All three sources share a cache folder."""
    for mode in ("train", "augmented", POOL, "train"):
        batches_of(store, mode, "disk", tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("features.npy"))) == 3


def test_videos_that_lack_a_mode_are_counted(store):
    everything = {*IDS["train"], *IDS["augmented"], "without any clips"}
    assert num_incomplete(store, "train", everything) == 2
    assert num_incomplete(store, "augmented", everything) == 3
    assert num_incomplete(store, POOL, everything) == 5
    assert num_incomplete(store, POOL, BOTH) == 0


def test_a_mode_that_the_store_lacks_is_refused_with_the_command_that_adds_it(tmp_path, store):
    check_modes(store, "pretrain_mode", POOL)
    [clip] = [VideoFeatures("v", np.zeros((2, 3), np.float16), np.zeros((2, 7), np.float32), VideoGeometry(9, 9, 1, 1))]
    alone = FeatureStore.create(str(tmp_path / "alone"), {"backbone": "b", "weights": "w"})
    for present in ("no", "train", "train and eval"):
        if present != "no":
            mode = present.rpartition(" ")[2]
            alone.commit(alone.part_name(mode, ["v"]), mode, [clip])
        with pytest.raises(UserError) as refused:
            check_modes(alone, "pretrain_mode", "augmented")
        assert str(refused.value) == (
            f"pretrain_mode: expected a store with augmented clips, found one with {present} clips; add them with: "
            f"scale-ray extract VIDEOS --store {alone.location} --mode augmented"
        )
    with pytest.raises(UserError, match="expected a store with augmented clips"):
        check_modes(alone, "probe_mode", POOL)
