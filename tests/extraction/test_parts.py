"""A corpus in parts: several runs fill one store at the same time, with the rows of a single run."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scale_ray.aggregator import Aggregator
from scale_ray.clips import VideoGeometry
from scale_ray.config import (
    AggregatorOptions,
    EmbedConfig,
    Extraction,
    InspectConfig,
    Part,
    PipelineConfig,
    Sampling,
)
from scale_ray.console import Console
from scale_ray.corpus import read_corpus
from scale_ray.distributed import stream as stage
from scale_ray.embedding import VectorStore
from scale_ray.errors import UserError, VideoError
from scale_ray.extraction import ExtractionRun, ExtractionSummary, Target
from scale_ray.extraction.results import VideoResult
from scale_ray.hashing import part_of, uniform_hash
from scale_ray.stages.embed import EmbedResult, embed
from scale_ray.stages.inspect import inspect
from scale_ray.stages.pipeline import pipeline
from scale_ray.store import FeatureStore, Lease, ShardStore, fingerprint_of, lease, repair, write_lease

FINGERPRINT = {"backbone": "tiny", "weights": "none"}
NUM_VIDEOS = 60


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.2)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Videos whose sizes are not known before they are opened, some of the test split."""
    rows = [f"video_{number:02d}.mp4,class {number % 3}\n" for number in range(NUM_VIDEOS)]
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(rows))
    return tmp_path / "m.csv"


@contextmanager
def running(manifest: Path, store: Path, part: str | None = None, **options: object) -> Iterator[ExtractionRun]:
    """A run that has planned, with its lease."""
    features = FeatureStore.create(str(store), FINGERPRINT)
    extraction = Extraction(shard_videos=4, part=part, **options)  # type: ignore[arg-type]
    with write_lease(features.location, Console(quiet=True), extraction.corpus_part) as held:
        with held.exclusively():
            repair(features, others_write=part is not None)
        target = Target(None, features, held)  # type: ignore[arg-type]
        yield ExtractionRun(read_corpus(str(manifest)), [target], extraction)


def results(run: ExtractionRun, salt: int = 0) -> Iterator[VideoResult]:
    """The results of all videos, one after the other; the features depend on the id, and each tenth video is broken."""
    for number, shard in enumerate(run.shards):
        for video_id in shard.video_ids:
            seed = int(video_id[-6:-4])
            if seed % 10 == 0:
                yield VideoResult(video_id, number, VideoError("open", "broken"))
                continue
            rng = np.random.default_rng(seed + salt)
            features = {0: rng.normal(size=(3, 4)).astype(np.float16)}
            positions, geometry = rng.random((3, 7), np.float32), VideoGeometry(120, 160 + seed, 8.0, 15.0)
            yield VideoResult(video_id, number, None, positions, geometry, features, 1000 + seed)


def extract(manifest: Path, store: Path, part: str | None = None, **options: object) -> ExtractionSummary:
    with running(manifest, store, part, **options) as run:
        for result in results(run):
            run.add_result(result)
        [summary] = run.finish()
    return summary


def assert_same_rows(store: Path, other: Path) -> None:
    """Assert that two stores hold the same videos, clips and failures, whatever the cut of their shards."""
    first, second = FeatureStore(str(store)), FeatureStore(str(other))
    assert first.videos().equals(second.videos())
    for mode in ("train", "eval"):
        tables = [part.read_parts(f"features/part-{mode}-", None).sort_by("video_id") for part in (first, second)]
        assert tables[0].equals(tables[1])
    assert first.failures() == second.failures()
    assert len(first.failures()) == NUM_VIDEOS // 10


def parts(count: int) -> list[str]:
    return [f"{number}/{count}" for number in range(1, count + 1)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_all_parts_together_are_one_run_to_the_byte(manifest, tmp_path, order):
    whole = extract(manifest, tmp_path / "whole")
    summaries = [extract(manifest, tmp_path / "parts", parts(3)[number]) for number in order]
    assert_same_rows(tmp_path / "parts", tmp_path / "whole")
    assert sum(summary.num_videos for summary in summaries) == whole.num_videos == NUM_VIDEOS
    assert sum(summary.num_done for summary in summaries) == whole.num_done == NUM_VIDEOS * 9 // 10
    assert sum(summary.num_failed for summary in summaries) == whole.num_failed
    assert all(0 < summary.num_videos < NUM_VIDEOS for summary in summaries)


def test_a_run_of_the_whole_corpus_finds_everything_done_after_its_parts(manifest, tmp_path):
    for part in parts(3):
        extract(manifest, tmp_path / "s", part)
    with running(manifest, tmp_path / "s") as run:
        assert run.shards == []
        [summary] = run.finish()
    assert (summary.num_done, summary.num_skipped, summary.num_extracted) == (54, 6, 0)
    assert not summary.corrected


def test_parts_may_be_finished_with_another_number_of_parts(manifest, tmp_path):
    extract(manifest, tmp_path / "s", "2/3")
    for part in parts(4):
        extract(manifest, tmp_path / "s", part)
    extract(manifest, tmp_path / "whole")
    assert_same_rows(tmp_path / "s", tmp_path / "whole")


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_two_parts_at_once_lose_nothing_of_each_other_in_whatever_order_they_end(manifest, tmp_path, first_to_end):
    extract(manifest, tmp_path / "whole")
    with ExitStack() as stack:
        runs = [stack.enter_context(running(manifest, tmp_path / "s", part)) for part in parts(2)]
        for results_at_once in itertools.zip_longest(*map(results, runs)):
            for run, result in zip(runs, results_at_once, strict=True):
                if result is not None:
                    run.add_result(result)
        for number in (first_to_end, 1 - first_to_end):
            assert not runs[number].incomplete()
            runs[number].finish()
    assert_same_rows(tmp_path / "s", tmp_path / "whole")


def _slow_table(monkeypatch) -> None:
    """Let the table of videos be written so late that a second writer, if nothing kept it, had read the old one."""
    write = ShardStore.write

    def slowly(store: ShardStore, table: pa.Table, *name: str) -> None:
        if name == ("videos.parquet",):
            time.sleep(0.3)
        write(store, table, *name)

    monkeypatch.setattr(ShardStore, "write", slowly)


def _end_at_once(manifest: Path, store: Path, before_the_end: Callable[[], None] = lambda: None) -> None:
    ready = threading.Barrier(3, action=before_the_end)

    def work(part: str) -> None:
        with running(manifest, store, part) as run:
            for result in results(run):
                run.add_result(result)
            ready.wait(timeout=60)
            run.finish()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, parts(3)))


def test_parts_that_end_at_the_same_moment_lose_nothing_of_each_other(manifest, tmp_path, monkeypatch):
    extract(manifest, tmp_path / "whole")
    _slow_table(monkeypatch)
    _end_at_once(manifest, tmp_path / "s")
    assert_same_rows(tmp_path / "s", tmp_path / "whole")


def test_without_taking_turns_the_table_of_videos_would_lose_rows(manifest, tmp_path, monkeypatch):
    """The test above can fail."""
    extract(manifest, tmp_path / "whole")
    _slow_table(monkeypatch)
    _end_at_once(manifest, tmp_path / "s", lambda: monkeypatch.setattr(Lease, "exclusively", lambda _: nullcontext()))
    tables = [FeatureStore(str(tmp_path / name)).videos() for name in ("s", "whole")]
    assert not tables[0].equals(tables[1])


def test_a_part_that_was_killed_is_finished_by_the_same_command_while_others_work(manifest, tmp_path):
    extract(manifest, tmp_path / "whole")
    with running(manifest, tmp_path / "s", "1/2") as other:
        feed = results(other)
        with running(manifest, tmp_path / "s", "2/2") as killed:
            for _, result in zip(range(9), results(killed), strict=False):
                killed.add_result(result)
        other.add_result(next(feed))
        again = extract(manifest, tmp_path / "s", "2/2")
        for result in feed:
            other.add_result(result)
        other.finish()
    assert 0 < again.num_extracted < again.num_done
    store = FeatureStore(str(tmp_path / "s"))
    ids = store.read_parts("features/part-", ["video_id"])["video_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 54
    features = [FeatureStore(str(tmp_path / name)).read_parts("features/part-", None) for name in ("s", "whole")]
    assert features[0].sort_by("video_id").equals(features[1].sort_by("video_id"))


def test_an_unfinished_file_of_another_part_is_left_alone(manifest, tmp_path):
    extract(manifest, tmp_path / "s", "1/2")
    unfinished = tmp_path / "s" / "features" / "part-train-1.parquet.0123abcd.unfinished"
    unfinished.write_bytes(b"half")
    extract(manifest, tmp_path / "s", "2/2")
    assert unfinished.exists()
    extract(manifest, tmp_path / "s")
    assert not unfinished.exists()


def test_what_a_part_says_about_its_files_is_not_changed_by_another_one(manifest, tmp_path):
    """A file that is replaced while the parts work is found by the next run of its part."""
    for part in parts(2):
        extract(manifest, tmp_path / "s", part)
    store = FeatureStore(str(tmp_path / "s"))
    replaced = next(video_id for video_id in store.stored_ids("train") if part_of(video_id, 2) == 1)
    (manifest.parent / replaced).write_bytes(b"another file")
    assert extract(manifest, tmp_path / "s", "2/2").num_changed == 0
    summary = extract(manifest, tmp_path / "s", "1/2")
    assert list(summary.changed) == [replaced]


def test_parts_that_extract_again_take_their_videos_out_of_common_shards(manifest, tmp_path):
    extract(manifest, tmp_path / "s")
    before = dict.fromkeys(sorted(FeatureStore(str(tmp_path / "s")).stored_ids("train"))[:8])
    for video_id in before:
        (manifest.parent / video_id).write_bytes(b"another file")
    with ExitStack() as stack:
        runs = [stack.enter_context(running(manifest, tmp_path / "s", p, re_extract_changed=True)) for p in parts(2)]
        assert [sorted(v for shard in run.shards for v in shard.video_ids) for run in runs] == [
            sorted(v for v in before if part_of(v, 2) == number) for number in (1, 2)
        ]
        for run in runs:
            for result in results(run, salt=1000):
                run.add_result(result)
            run.finish()
    [summary] = [extract(manifest, tmp_path / "s")]
    assert (summary.num_done, summary.num_changed, summary.num_extracted) == (54, 0, 0)
    ids = FeatureStore(str(tmp_path / "s")).read_parts("features/part-", ["video_id"])["video_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 54


def test_a_corrected_manifest_corrects_the_rows_of_all_parts(manifest, tmp_path):
    for part in parts(2):
        extract(manifest, tmp_path / "s", part)
    manifest.write_text(manifest.read_text().replace("class 1", "class one"))
    extract(manifest, tmp_path / "s", "1/2")
    extract(manifest, tmp_path / "whole")
    assert_same_rows(tmp_path / "s", tmp_path / "whole")


def test_vectors_of_all_parts_together_are_those_of_one_run(manifest, tmp_path, monkeypatch):
    def stream(run, sampling, extraction, size, progress):
        for result in results(run):
            run.add_result(result)

    monkeypatch.setattr(stage, "stream_shards", stream)
    monkeypatch.setattr(stage, "connected", lambda *_, **__: nullcontext())
    monkeypatch.setattr(sys.modules["scale_ray.stages.embed"], "backbone_of", lambda *_, **__: None)
    origin = fingerprint_of(FINGERPRINT, Sampling())
    Aggregator(4, AggregatorOptions(width=32, layers=1), origin).save(str(tmp_path / "aggregator"))

    def embed_part(out: str, part: str | None = None) -> EmbedResult:
        config = EmbedConfig().replaced(part=part)
        given = {"config": config, "console": Console(quiet=True)}
        return embed(str(manifest), str(tmp_path / "aggregator"), str(tmp_path / out), **given)

    assert embed_part("whole").num_done == NUM_VIDEOS * 9 // 10
    assert sum(embed_part("parts", part).num_done for part in parts(2)) == NUM_VIDEOS * 9 // 10
    stores = [VectorStore(str(tmp_path / name)) for name in ("parts", "whole")]
    tables = [store.read_parts("vectors/part-", None).sort_by("video_id") for store in stores]
    assert tables[0].equals(tables[1])
    assert stores[0].videos().equals(stores[1].videos())
    with pytest.raises(UserError, match=r"part: expected none for the features of a store, .*, found 1/2"):
        embed(
            None,
            str(tmp_path / "aggregator"),
            str(tmp_path / "out"),
            store=str(tmp_path / "parts"),
            config=EmbedConfig().replaced(part="1/2"),
            console=Console(quiet=True),
        )


def test_stages_that_need_the_whole_corpus_refuse_a_part(manifest, tmp_path):
    console = Console(quiet=True)
    with pytest.raises(UserError, match="part: expected none for a pipeline, which is of the whole corpus, found 1/2"):
        pipeline(
            str(manifest), str(tmp_path / "s"), "run", config=PipelineConfig().replaced(part="1/2"), console=console
        )
    with pytest.raises(UserError, match="part: expected none for an inspection"):
        inspect(str(manifest), config=InspectConfig().replaced(part="1/2"), console=console)


def test_a_part_may_be_empty(manifest, tmp_path):
    extract(manifest, tmp_path / "s", "1/999")
    summaries = [extract(manifest, tmp_path / "s", f"{number}/1000") for number in (1, 2, 3)]
    assert 0 in [summary.num_videos for summary in summaries]
    assert all(summary.failed_fraction <= 1 for summary in summaries)
    assert len(FeatureStore(str(tmp_path / "s")).videos()) == NUM_VIDEOS


def test_the_part_of_a_video_depends_on_its_id_alone_and_not_on_its_subset():
    ids = [f"class/{number}.mp4" for number in range(20_000)]
    numbers = np.array([part_of(video_id, 16) for video_id in ids])
    assert set(numbers) == set(range(1, 17))
    assert np.bincount(numbers)[1:].min() > 20_000 / 16 * 0.9
    test = numbers[np.array([uniform_hash(video_id) < 0.2 for video_id in ids])]
    assert np.bincount(test)[1:].min() > 0.2 * 20_000 / 16 * 0.75
    assert [part_of(video_id, 16) for video_id in ids[5:8]] == numbers[5:8].tolist()


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2", " 1/4", "1/4\n", "01/4", "", "٣/٤"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UserError, match="part: expected a value I/N with 1 <= I <= N, such as 3/16, found "):
        Extraction(part=text)


def test_a_part_is_read_from_its_text():
    assert Extraction(part="3/16").corpus_part == Part(3, 16)
    assert str(Part(3, 16)) == "3/16"
    assert Extraction().corpus_part is None
