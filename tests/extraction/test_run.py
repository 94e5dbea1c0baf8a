"""The plan and the commits of an extraction, without Ray: a loop replaces the stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.stores import read_clips

from scale_ray.clips import VideoGeometry
from scale_ray.config import ExtractConfig, Extraction, Sampling
from scale_ray.console import Console
from scale_ray.corpus import manifests
from scale_ray.distributed import stream as stage
from scale_ray.errors import UserError, VideoError
from scale_ray.extraction.results import VideoResult
from scale_ray.extraction.run import ExtractionRun, Shard
from scale_ray.extraction.summary import ExtractionSummary
from scale_ray.stages.extract import extract
from scale_ray.store import lease
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import Failure

SMALL = "shufflenet_v2_x0_5"


class Killed(Exception):
    """The process died here."""


def run(
    videos: Path,
    store: Path,
    monkeypatch,
    *,
    dies_after: int | None = None,
    backbone: str = SMALL,
    stream: Callable[..., None] | None = None,
    **options,
) -> Sequence[ExtractionSummary]:
    """Extract invented features; broken files fail, and the run dies after `dies_after` shards."""

    def invent(run, sampling, extraction, size, progress):
        for number, shard in enumerate(run.shards):
            if number == dies_after:
                raise Killed
            for video_id in reversed(shard.video_ids):
                run.add_result(result(video_id, number, shard, sampling))

    monkeypatch.setattr(stage, "stream_shards", stream or invent)
    monkeypatch.setattr(stage, "connected", lambda *_, **__: nullcontext())
    given = {"shard_videos": 4} | options
    config = ExtractConfig().replaced(backbone=backbone, weights="none", input_px=32, **given)
    return extract(str(videos), str(store), config=config, console=Console(quiet=True)).stores


def result(video_id: str, number: int, shard: Shard, sampling: Sampling) -> VideoResult:
    if "_0" not in video_id:
        return VideoResult(video_id, number, VideoError("open", "broken"))
    rng = np.random.default_rng(len(video_id))
    clips = sampling.num_clips(shard.mode)
    features = {target: rng.normal(size=(clips, 4 + target)).astype(np.float16) for target in shard.targets}
    geometry = VideoGeometry(120, 160, 8.0, 15.0)
    return VideoResult(video_id, number, None, np.zeros((clips, 7), np.float32), geometry, features)


@pytest.mark.parametrize("dies_after", [0, 1, 3])
def test_a_run_that_died_is_finished_by_the_same_command(videos, tmp_path, monkeypatch, dies_after):
    with pytest.raises(Killed):
        run(videos, tmp_path / "died", monkeypatch, dies_after=dies_after)
    done_before = sum(len(FeatureStore(str(tmp_path / "died")).stored_ids(mode)) for mode in ("train", "eval"))
    [summary] = run(videos, tmp_path / "died", monkeypatch)
    run(videos, tmp_path / "whole", monkeypatch)
    assert (summary.num_videos, summary.num_done, summary.num_failed + summary.num_skipped) == (35, 32, 3)
    assert summary.num_extracted + done_before == 32
    died, whole = (FeatureStore(str(tmp_path / name)) for name in ("died", "whole"))
    for mode in ("train", "eval"):
        assert read_clips(died, mode).video_ids == read_clips(whole, mode).video_ids
        np.testing.assert_array_equal(read_clips(died, mode).features, read_clips(whole, mode).features)
    assert died.videos().equals(whole.videos())


def test_failed_videos_are_tried_again_only_when_asked(videos, tmp_path, monkeypatch):
    [first] = run(videos, tmp_path / "s", monkeypatch)
    assert "32 done + 3 failed + 0 skipped = 35 videos" in first.lines()
    [again] = run(videos, tmp_path / "s", monkeypatch)
    assert [entry.attempts for entry in again.failures] == [1, 1, 1]
    assert (again.num_done, again.num_failed, again.num_skipped) == (32, 0, 3)
    assert "32 done + 0 failed + 3 skipped = 35 videos, skipped: failed before, --retry-failed tries them again" in (
        again.lines()
    )
    [retried] = run(videos, tmp_path / "s", monkeypatch, retry_failed=True)
    assert [entry.attempts for entry in retried.failures] == [2, 2, 2]
    assert (retried.num_extracted, retried.num_failed, retried.num_skipped) == (0, 3, 0)


def test_many_failures_are_counted_and_some_shown():
    failures = [Failure(f"v{n}", "train", "/v", "open", "broken", "", 1) for n in range(30)]
    lines = ExtractionSummary("s", 100, 70, 30, 0, 70, False, failures).lines()
    assert len(lines) == 2 + 20 + 1
    assert lines[-1] == "  and 10 more: the ledger in s/failures lists them all"


def test_the_plan_covers_every_video_once_in_order(videos, tmp_path, monkeypatch):
    seen: list[Shard] = []
    original = ExtractionRun.__init__
    monkeypatch.setattr(ExtractionRun, "__init__", lambda run, *given: original(run, *given) or seen.extend(run.shards))
    run(videos, tmp_path / "s", monkeypatch)
    planned = [video_id for shard in seen for video_id in shard.video_ids]
    assert sorted(planned) == FeatureStore(str(tmp_path / "s")).videos()["video_id"].to_pylist()
    assert all(shard.video_ids == sorted(shard.video_ids) for shard in seen)
    assert max(len(shard.video_ids) for shard in seen) == 4


def test_another_mode_extracts_the_difference(videos, tmp_path, monkeypatch):
    run(videos, tmp_path / "s", monkeypatch)
    [summary] = run(videos, tmp_path / "s", monkeypatch, mode="train")
    assert 0 < summary.num_extracted < 32
    [augmented] = run(videos, tmp_path / "s", monkeypatch, mode="augmented")
    assert augmented.num_extracted == 32
    store = FeatureStore(str(tmp_path / "s"))
    assert len(store.stored_ids("train")) == len(store.stored_ids("augmented")) == 32
    assert read_clips(store, "augmented").features.shape[1] == 16


def test_several_backbones_share_the_decoding_and_have_a_store_each(videos, tmp_path, monkeypatch):
    run(videos, tmp_path / "both" / SMALL, monkeypatch)
    first, second = run(videos, tmp_path / "both", monkeypatch, backbone=f"{SMALL},squeezenet1_1")
    assert (first.num_extracted, second.num_extracted) == (0, 32), "the store of the first backbone is not complete"
    stores = [FeatureStore(str(tmp_path / "both" / name)) for name in (SMALL, "squeezenet1_1")]
    assert [store.fingerprint["backbone"] for store in stores] == [SMALL, "squeezenet1_1"]
    assert [store.feature_width() for store in stores] == [4, 5]
    with pytest.raises(UserError, match="expected a folder for the stores of 2 backbones, found a single store"):
        run(videos, tmp_path / "both" / SMALL, monkeypatch, backbone=f"{SMALL},squeezenet1_1")


@pytest.mark.slow
def test_a_store_that_somebody_writes_to_is_left_alone(videos, tmp_path, monkeypatch):
    run(videos, tmp_path / "s", monkeypatch)
    with (
        lease.write_lease(str(tmp_path / "s")),
        pytest.raises(UserError, match="expected no other writer of this store, found process"),
    ):
        run(videos, tmp_path / "s", monkeypatch, mode="augmented")
    assert not FeatureStore(str(tmp_path / "s")).stored_ids("augmented")


def test_features_that_float16_cannot_hold_are_failures_of_the_backbone(videos, tmp_path, monkeypatch):
    real = result

    def infinite(video_id, *rest):
        good = real(video_id, *rest)
        if video_id != "approach/approach_003.mp4":
            return good
        return replace(good, features={0: np.full((16, 4), np.inf, np.float16)})

    monkeypatch.setattr(sys.modules[__name__], "result", infinite)
    [summary] = run(videos, tmp_path / "s", monkeypatch, mode="train")
    entry = next(entry for entry in summary.failures if entry.video_id == "approach/approach_003.mp4")
    assert entry.stage == "backbone"
    assert "not finite" in entry.reason
    assert summary.num_done == 31


def test_a_size_that_is_found_when_the_file_is_opened_is_stored_and_kept(tmp_path, monkeypatch):
    """Files that the listing does not find stand for those whose sizes it does not know."""
    (tmp_path / "m.csv").write_text("path,label\na_0.mp4,x\nb_0.mp4,x\nbroken.mp4,x\n")
    real = result
    monkeypatch.setattr(
        sys.modules[__name__], "result", lambda video_id, *rest: replace(real(video_id, *rest), size_bytes=123)
    )
    run(tmp_path / "m.csv", tmp_path / "s", monkeypatch, mode="train")
    store = FeatureStore(str(tmp_path / "s"))
    sizes = dict(zip(store.videos()["video_id"].to_pylist(), store.videos()["size_bytes"].to_pylist(), strict=True))
    assert sizes == {"a_0.mp4": 123, "b_0.mp4": 123, "broken.mp4": 123}
    (tmp_path / "a_0.mp4").write_bytes(b"x" * 123)
    (tmp_path / "m.csv").write_text("path,label\na_0.mp4,y\nb_0.mp4,y\n")
    [again] = run(tmp_path / "m.csv", tmp_path / "s", monkeypatch, mode="train")
    assert (again.num_done, again.num_extracted, again.corrected) == (2, 0, True)
    assert store.videos()["size_bytes"].to_pylist() == [123, 123, 123]
    assert store.labels() == {"a_0.mp4": "y", "b_0.mp4": "y", "broken.mp4": "x"}


def test_videos_on_servers_that_cannot_be_reached_are_refused_only_if_they_are_pending(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "file_sizes", lambda paths, *_: (pa.nulls(len(paths), pa.int64()), [], {}))
    (tmp_path / "m.csv").write_text("path,label\ns3://gone/a_0.mp4,x\n")
    run(tmp_path / "m.csv", tmp_path / "s", monkeypatch, mode="train")
    unreachable = {"s3://gone": "no such host"}
    monkeypatch.setattr(manifests, "file_sizes", lambda paths, *_: (pa.nulls(len(paths), pa.int64()), [], unreachable))
    (tmp_path / "m.csv").write_text("path,label\ns3://gone/a_0.mp4,y\n")
    [again] = run(tmp_path / "m.csv", tmp_path / "s", monkeypatch, mode="train")
    assert (again.num_done, again.corrected) == (1, True)
    with pytest.raises(UserError, match="expected to reach s3://gone, found: no such host"):
        run(tmp_path / "m.csv", tmp_path / "s", monkeypatch, mode="eval")


@pytest.mark.parametrize(
    ("num_videos", "size"),
    [(1, 64), (262_144, 64), (262_145, 128), (524_289, 256), (1_000_000, 256), (4_194_304, 1024), (10**9, 1024)],
)
def test_shards_grow_with_the_corpus_up_to_a_limit(num_videos, size):
    assert Extraction().videos_per_shard(num_videos) == size
    assert Extraction(shard_videos=100).videos_per_shard(num_videos) == 100


def test_the_automatic_size_of_shards_is_that_of_the_whole_corpus_whatever_is_stored(videos, tmp_path, monkeypatch):
    """A run that died and was resumed has the shards of one that was not."""
    for name, value in {"_MIN_SHARD_VIDEOS": 1, "_MAX_SHARDS": 12}.items():
        monkeypatch.setattr(sys.modules["scale_ray.config.extraction"], name, value)
    run(videos, tmp_path / "whole", monkeypatch, shard_videos=0)
    for dies_after in (3, 1):
        with pytest.raises(Killed):
            run(videos, tmp_path / "died", monkeypatch, dies_after=dies_after, shard_videos=0)
    run(videos, tmp_path / "died", monkeypatch, shard_videos=0)
    names = [sorted(path.name for path in (tmp_path / name / "features").iterdir()) for name in ("whole", "died")]
    assert names[0] == names[1]
    assert 9 <= len(names[0]) <= 12


def test_a_decoding_task_is_a_small_part_of_a_large_shard(tmp_path, monkeypatch):
    (tmp_path / "m.csv").write_text("path\n" + "".join(f"v{number:03d}_0.mp4\n" for number in range(300)))
    cut: list[list[int]] = []

    def stream(run, numbers, *_):
        cut.append([len(task) for task in stage._tasks(run, numbers, 13, 1000)])
        for number in numbers:
            for video_id in run.shards[number].video_ids:
                run.add_result(result(video_id, number, run.shards[number], Sampling()))

    real = stage.stream_shards
    monkeypatch.setattr(stage, "_stream_some", stream)
    monkeypatch.setattr(stage, "_TASKS_AT_ONCE", 4)
    with monkeypatch.context() as patches:
        run(tmp_path / "m.csv", tmp_path / "s", patches, stream=real, shard_videos=200)
    assert cut == [[65, 65, 65, 5], [65, 35]]
