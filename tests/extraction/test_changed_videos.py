"""Videos that were replaced since the store got their features: said, left out, or extracted again exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from scale_ray.cli.options import Caller
from scale_ray.clips import VideoGeometry
from scale_ray.config import Extraction, Sampling
from scale_ray.console import Console
from scale_ray.corpus import read_corpus
from scale_ray.decoding import Request
from scale_ray.distributed.stream import _tasks
from scale_ray.embedding import VectorStore
from scale_ray.errors import UserError, VideoError
from scale_ray.extraction import ExtractionRun, ExtractionSummary, Target, decode_videos
from scale_ray.extraction.results import VideoResult
from scale_ray.store import FeatureStore, StoredClips, compact, remove_videos, repair, verify, write_lease

FINGERPRINT = {"backbone": "tiny", "weights": "none"}


class Killed(Exception):
    """The process died here."""


def extract(
    folder: Path, names: Sequence[str] = ("s",), *, dies_after: int | None = None, **options: object
) -> list[ExtractionSummary]:
    """Extract features whose value is the size of the file; a file of 13 bytes is broken."""
    corpus = read_corpus(str(folder / "m.csv"))
    stores = [FeatureStore.create(str(folder / name), FINGERPRINT) for name in names]
    with write_lease(stores[0].location) as lease:
        for store in stores:
            repair(store)
        targets = [Target(None, store, lease) for store in stores]  # type: ignore[arg-type]
        run = ExtractionRun(corpus, targets, Extraction(shard_videos=3, **options))  # type: ignore[arg-type]
        for number, shard in enumerate(run.shards):
            if number == dies_after:
                raise Killed
            for video_id, path in zip(shard.video_ids, shard.paths, strict=True):
                size = Path(path).stat().st_size
                if size == 13:
                    run.add_result(VideoResult(video_id, number, VideoError("open", "broken")))
                    continue
                features = dict.fromkeys(shard.targets, np.full((16, 4), size, np.float16))
                positions, geometry = np.zeros((16, 7), np.float32), VideoGeometry(120, 160, 8.0, 15.0)
                run.add_result(VideoResult(video_id, number, None, positions, geometry, features, size))
        return run.finish()


def stored(folder: Path, mode: str = "train", name: str = "s") -> dict[str, int]:
    """The size from which the features of each video were made."""
    clips = StoredClips(FeatureStore(str(folder / name)), mode).read()
    return {video_id: int(row[0, 0]) for video_id, row in zip(clips.video_ids, clips.features, strict=True)}


def sizes(folder: Path) -> dict[str, int]:
    videos = FeatureStore(str(folder / "s")).videos()
    return dict(zip(videos["video_id"].to_pylist(), videos["size_bytes"].to_pylist(), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten files of 10 bytes, all training videos."""
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{number},x\n" for number in range(10)))
    replace(tmp_path, range(10), 10)
    return tmp_path


def replace(folder: Path, numbers: Sequence[int], size: int) -> None:
    for number in numbers:
        (folder / str(number)).write_bytes(b"x" * size)


def code_of(summaries: Sequence[ExtractionSummary]) -> int:
    return Caller(Console(quiet=True), False, False).code_of(summaries, 0.1)


def test_a_replaced_video_is_named_and_left_out_and_the_others_go_on(folder):
    with pytest.raises(Killed):
        extract(folder, mode="train", dies_after=3)
    replace(folder, [2, 5, 9], 20)  # 9 is not stored yet
    for _ in range(2):  # it is found again
        [summary] = extract(folder, mode="train")
        assert summary.changed == dict.fromkeys("25", "10 bytes in the store, 20 now")
        assert (summary.num_done, summary.num_changed, summary.num_failed, summary.num_skipped) == (8, 2, 0, 0)
        assert "8 done + 2 changed + 0 failed + 0 skipped = 10 videos" in summary.lines()
        assert "  changed: 2 (10 bytes in the store, 20 now)" in summary.lines()
        assert code_of([summary]) == 3
        assert stored(folder) == {**dict.fromkeys("012345678", 10), "9": 20}
        assert sizes(folder) == {**dict.fromkeys("012345678", 10), "9": 20}
    assert not summary.corrected


def test_many_changes_are_counted_and_some_shown(folder):
    extract(folder, mode="train")
    replace(folder, range(10), 20)
    [summary] = extract(folder, mode="train")
    lines = summary.lines()
    assert sum(line.startswith("  changed: ") for line in lines) == 5
    assert lines[-1] == "  and 5 more: --json lists them all"
    assert summary.values()["changed"] == {str(n): "10 bytes in the store, 20 now" for n in range(10)}
    assert code_of([summary]) == 3


def test_changed_videos_are_extracted_again_when_asked(folder):
    extract(folder, mode="train")
    extract(folder, mode="augmented")
    replace(folder, [2, 5], 20)
    [summary] = extract(folder, mode="train", re_extract_changed=True)
    assert (summary.num_done, summary.num_extracted, summary.changed) == (10, 2, {})
    assert code_of([summary]) == 0
    for mode in ("train", "augmented"):  # nothing of the old file is left
        assert stored(folder, mode) == {**dict.fromkeys("01346789", 10), "2": 20, "5": 20}
    assert sizes(folder) == stored(folder)
    store = FeatureStore(str(folder / "s"))
    assert verify(store) == []
    compact(store)
    [again] = extract(folder, mode="train", re_extract_changed=True)
    assert (again.num_done, again.num_extracted, again.changed) == (10, 0, {})
    assert stored(folder)["2"] == 20


def test_a_video_that_was_replaced_by_a_broken_one_is_in_the_ledger(folder):
    extract(folder, mode="train")
    replace(folder, [4], 13)
    [summary] = extract(folder, mode="train", re_extract_changed=True)
    assert [failure.video_id for failure in summary.failures] == ["4"]
    assert (summary.num_done, summary.num_failed) == (9, 1)
    assert "4" not in stored(folder)


@pytest.mark.parametrize("again", [True, False])
def test_a_run_that_dies_after_it_took_them_out_is_finished_by_the_same_command(folder, again):
    extract(folder, mode="train")
    replace(folder, [0, 1, 2, 3, 7], 20)
    with pytest.raises(Killed):
        extract(folder, mode="train", re_extract_changed=True, dies_after=1)
    assert set(stored(folder).items()) <= {(str(n), 20 if n in (0, 1, 2, 3, 7) else 10) for n in range(10)}
    [summary] = extract(folder, mode="train", re_extract_changed=again)
    assert (summary.num_done, summary.changed) == (10, {})
    assert stored(folder) == {str(n): 20 if n in (0, 1, 2, 3, 7) else 10 for n in range(10)}


@pytest.mark.parametrize("writes", range(4))
def test_a_video_has_its_old_features_or_none_wherever_the_removal_dies(folder, writes, monkeypatch):
    extract(folder, mode="train")
    replace(folder, [0, 4, 8], 20)
    store = FeatureStore(str(folder / "s"))
    num_written, original = 0, FeatureStore.write

    def write(*arguments):
        nonlocal num_written
        if num_written == writes:
            raise Killed
        num_written += 1
        original(*arguments)

    monkeypatch.setattr(FeatureStore, "write", write)
    with pytest.raises(Killed) if writes < 3 else nullcontext():
        assert remove_videos(store, {"0", "4", "8"}) == dict.fromkeys("048", ("train",))
    monkeypatch.undo()
    left = stored(folder)
    assert len(left) == 10 - writes
    assert set(left.values()) == {10}
    [left_out] = extract(folder, mode="train")
    assert set(left_out.changed) == set("048") & set(left)
    extract(folder, mode="train", re_extract_changed=True)
    assert stored(folder) == {str(n): 20 if n in (0, 4, 8) else 10 for n in range(10)}


def test_each_store_has_its_own_changes(folder):
    extract(folder, ["s"], mode="train")
    replace(folder, [3], 20)
    first, second = extract(folder, ["s", "t"], mode="train")
    assert (set(first.changed), first.num_done, set(second.changed), second.num_done) == ({"3"}, 9, set(), 10)
    assert (stored(folder)["3"], stored(folder, name="t")["3"]) == (10, 20)


def test_another_path_is_refused_whatever_its_size(folder):
    extract(folder, mode="train")
    (folder / "3.mp4").write_bytes(b"x" * 10)
    (folder / "m.csv").write_text("id,path\n3,3.mp4\n")
    with pytest.raises(UserError, match=r"3: expected the video that the store holds under this id .*--id-prefix"):
        extract(folder, mode="train", re_extract_changed=True)
    assert stored(folder)["3"] == 10


def test_vectors_of_a_file_that_was_replaced_are_refused(folder):
    extract(folder, mode="train")
    features, vectors = FeatureStore(str(folder / "s")), VectorStore.create(str(folder / "v"), FINGERPRINT)
    parts = [features.read_part(path) for path in features.parts("features/part-train-")]
    part = next(part for part in parts if "9" not in part["video_id"].to_pylist())
    vectors.write(part, "vectors", "part-train-0.parquet")
    vectors.replace_videos(features.videos())
    for name in (9, part["video_id"][0].as_py()):
        vectors.check_files(features)
        replace(folder, [name], 20)
        extract(folder, mode="train", re_extract_changed=True)
    with pytest.raises(UserError, match=f"found 1 of files that were replaced since, such as '{name}'"):
        vectors.check_files(features)


def test_another_segment_under_the_same_id_is_a_change(folder):
    def write(*rows: str) -> None:
        (folder / "m.csv").write_text("id,path,start_s,end_s\n" + "".join(f"{row}\n" for row in rows))

    write("a,0,1,2", "b,0,2,", "c,1,,", "d,2,,")
    extract(folder, mode="train")
    write("a,0,1,3", "b,0,2,", "c,1,4,", "d,2,0,")
    for _ in range(2):
        [summary] = extract(folder, mode="train")
        assert summary.changed == {
            "a": "1 s to 2 s in the store, 1 s to 3 s now",
            "c": "the whole file in the store, 4 s to its end now",
        }
    videos = FeatureStore(str(folder / "s")).videos().select(["video_id", "start_s", "end_s"])
    assert [tuple(row.values()) for row in videos.to_pylist()] == [
        ("a", 1, 2),
        ("b", 2, None),
        ("c", None, None),
        ("d", None, None),
    ]
    [again] = extract(folder, mode="train", re_extract_changed=True)
    assert (again.num_extracted, again.changed) == (2, {})
    videos = FeatureStore(str(folder / "s")).videos()
    assert videos["start_s"].to_pylist() == [1, 2, 4, None]
    assert videos["end_s"].to_pylist() == [3, None, None, None]


def test_segments_travel_to_the_decoder(folder):
    (folder / "m.csv").write_text("path,start_s,end_s\n0,1,2\n0,5,\n1,,\n")
    corpus = read_corpus(str(folder / "m.csv"))
    store = FeatureStore.create(str(folder / "s"), FINGERPRINT)
    with write_lease(store.location) as lease:
        run = ExtractionRun(corpus, [Target(None, store, lease)], Extraction())  # type: ignore[arg-type]
    [shard] = run.shards
    assert (shard.video_ids, shard.segments) == (["0#1-2", "0#5-", "1"], [(1, 2), (5, None), (None, None)])
    [task] = _tasks(run, [0], 8, 8)
    requests: list[Request] = []

    class Asked:
        def decode(self, request, pixels):
            requests.append(request)
            raise VideoError("open", "only asked")

    blocks = list(decode_videos(task.to_pylist(), Asked(), Sampling(clips=2, frames=2), [16], 8))
    assert sum(map(len, blocks)) == 3
    assert [(request.start_s, request.end_s) for request in requests] == shard.segments
