"""The plan and the commit of an extraction, without Ray: the stream is replaced by a loop."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from scale_ray.clips import VideoGeometry
from scale_ray.config import BackboneOptions, Cluster, Extraction, Sampling
from scale_ray.corpus import read_corpus
from scale_ray.distributed import extract as stage
from scale_ray.store import Failure, FeatureStore, VideoFeatures


class Killed(Exception):
    """The process died here."""


def run(videos: Path, store: Path, monkeypatch, *, dies_after: int | None = None, **options) -> stage.ExtractionSummary:
    """Extract with made-up features; broken files fail, and after `dies_after` shards the run dies."""

    def stream(shards, to, encoder, sampling, extraction, size, progress):
        for number, shard in enumerate(shards):
            if number == dies_after:
                raise Killed
            results: dict[str, VideoFeatures | Failure] = {}
            for video_id, path, attempts in zip(shard.video_ids, shard.paths, shard.attempts, strict=True):
                if "_0" not in video_id:
                    results[video_id] = Failure(video_id, shard.mode, path, "open", "broken", "", attempts + 1)
                    continue
                rng = np.random.default_rng(len(video_id))
                features = rng.normal(size=(sampling.num_clips(shard.mode), 4)).astype(np.float16)
                positions = np.zeros((len(features), 7), np.float32)
                results[video_id] = VideoFeatures(video_id, features, positions, VideoGeometry(120, 160, 8.0, 15.0))
            stage._commit(to, shard, results)

    monkeypatch.setattr(stage, "_run_stream", stream)
    monkeypatch.setattr(stage, "connected", lambda *_, **__: nullcontext())
    return stage.extract(
        str(videos),
        str(store),
        sampling=Sampling(),
        backbone=BackboneOptions(backbone="shufflenet_v2_x0_5", weights="none", input_px=32),
        extraction=Extraction(shard_videos=4, **options),
        cluster=Cluster(),
        say=lambda _: None,
        quiet=True,
    )


@pytest.mark.parametrize("dies_after", [0, 1, 3])
def test_a_run_that_died_is_finished_by_the_same_command(videos, tmp_path, monkeypatch, dies_after):
    with pytest.raises(Killed):
        run(videos, tmp_path / "died", monkeypatch, dies_after=dies_after)
    done_before = sum(len(FeatureStore(str(tmp_path / "died")).done(mode)) for mode in ("train", "eval"))
    summary = run(videos, tmp_path / "died", monkeypatch)
    run(videos, tmp_path / "whole", monkeypatch)
    assert (summary.num_videos, summary.num_done, len(summary.failures)) == (35, 32, 3)
    assert summary.num_extracted + done_before == 32
    died, whole = (FeatureStore(str(tmp_path / name)) for name in ("died", "whole"))
    for mode in ("train", "eval"):
        assert died.read_clips(mode).video_ids == whole.read_clips(mode).video_ids
        np.testing.assert_array_equal(died.read_clips(mode).features, whole.read_clips(mode).features)
    assert died.videos().equals(whole.videos())


def test_failed_videos_are_tried_again_only_when_asked(videos, tmp_path, monkeypatch):
    run(videos, tmp_path / "s", monkeypatch)
    assert [entry.attempts for entry in run(videos, tmp_path / "s", monkeypatch).failures] == [1, 1, 1]
    again = run(videos, tmp_path / "s", monkeypatch, retry_failed=True)
    assert [entry.attempts for entry in again.failures] == [2, 2, 2]
    assert again.num_extracted == 0


def test_the_plan_covers_every_video_once_in_order(videos, tmp_path, monkeypatch):
    run(videos, tmp_path / "s", monkeypatch)
    empty = FeatureStore.create(str(tmp_path / "empty"), FeatureStore(str(tmp_path / "s")).fingerprint)
    corpus = read_corpus(str(videos))
    shards, left = stage.plan_shards(corpus, empty, Extraction(shard_videos=4))
    planned = [video_id for shard in shards for video_id in shard.video_ids]
    assert sorted(planned) == corpus.videos["video_id"].to_pylist()
    assert not left
    assert all(shard.video_ids == sorted(shard.video_ids) for shard in shards)
    assert max(len(shard.video_ids) for shard in shards) == 4


def test_another_mode_extracts_the_difference(videos, tmp_path, monkeypatch):
    run(videos, tmp_path / "s", monkeypatch)
    summary = run(videos, tmp_path / "s", monkeypatch, mode="train")
    store = FeatureStore(str(tmp_path / "s"))
    assert len(store.done("train")) == 32
    assert 0 < summary.num_extracted < 32
