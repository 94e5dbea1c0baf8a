"""The plan, the commits and the summary of an extraction, independent of what executes it.

The pending videos are divided into shards before any video is read. Results arrive per video and in any order; a shard
is committed when its last result has arrived, or not at all. `distributed/stream.py` does the work on Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scale_ray.clips import MODES
from scale_ray.config import Extraction, Part
from scale_ray.corpus import SUBSETS, Corpus, modes_of
from scale_ray.errors import UserError, VideoError
from scale_ray.extraction.results import VideoResult
from scale_ray.extraction.summary import ExtractionSummary
from scale_ray.extraction.targets import Target, exclusively
from scale_ray.files.locations import options_of
from scale_ray.hashing import part_of
from scale_ray.store import Failure, ShardStore, VideoFeatures, changed_videos, remove_videos

# The start and end of a video in its file, in seconds; None for the file's own.
Segment = tuple[float | None, float | None]
_WHOLE: Segment = (None, None)


@dataclass(frozen=True)
class Shard:
    """Videos that are committed together: sorted ids, their paths, without options, and their segments.

    `targets` are the numbers of the targets that lack these videos; `attempts` counts the earlier failed attempts per
    video and, within that, per target.
    """

    mode: str
    video_ids: list[str]
    paths: list[str]
    segments: list[Segment]
    targets: tuple[int, ...]
    attempts: list[tuple[int, ...]]


class ExtractionRun:
    """One extraction of a corpus into the stores of its targets: plans shards, collects results, commits and counts.

    With `extraction.part`, of the videos of that part: those of other parts are only listed in the table of videos.
    """

    def __init__(self, corpus: Corpus, targets: Sequence[Target], extraction: Extraction) -> None:
        self.targets = targets
        self._corpus, self._extraction = corpus, extraction
        self._videos = _videos_of_part(corpus.videos, extraction.corpus_part)
        self._removed: list[dict[str, tuple[str, ...]]] = [{} for _ in targets]
        self._measured: dict[str, int] = {}
        self._committed: set[int] = set()
        self._batch_clips = [extraction.batch_clips] * len(targets)
        self._arrived: dict[int, dict[str, list[VideoFeatures | Failure]]] = {}
        with exclusively(targets):
            self._prepare()
        corpus.check_reachable(path for shard in self.shards for path in shard.paths)

    def _prepare(self) -> None:
        """Compare the corpus with the stores, bring their tables of videos up to date, and plan."""
        # What changed of the videos that keep their old features, by target; and of those that are extracted again, the
        # modes that the store had.
        self._changed = [_changed_videos(target.store, self._corpus, self._videos) for target in self.targets]
        if self._extraction.re_extract_changed:
            for number, target in enumerate(self.targets):
                target.lease.check()
                self._removed[number] = remove_videos(target.store, self._changed[number].keys())
                self._changed[number] = {}
        # Written before any video is read, so that the store lists its videos even if the run dies; updated at the end,
        # when sizes and lengths are known.
        self._corrected = [self._replace_videos(number) for number in range(len(self.targets))]
        self._wanted = self._wanted_modes()
        self._failed_before = [{(f.video_id, f.mode): f.attempts for f in t.store.failures()} for t in self.targets]
        self._done_before = [self._done(number) for number in range(len(self.targets))]
        self.shards = self._plan()

    @property
    def num_videos(self) -> int:
        """The videos of the corpus or of the part of it."""
        return len(self._videos)

    @property
    def num_pending(self) -> int:
        """Videos to decode, counted once per mode."""
        return sum(len(shard.video_ids) for shard in self.shards)

    def opened_at(self, path: str) -> str:
        """The location at which a video is opened; see `Corpus.opened_at`."""
        return self._corpus.opened_at(path)

    def incomplete(self) -> list[int]:
        """Numbers of the shards that are not committed yet."""
        return [number for number in range(len(self.shards)) if number not in self._committed]

    def add_result(self, result: VideoResult) -> None:
        """Add the result of one video; commit its shard if it was the last one missing."""
        for target, batch_clips in result.batch_clips.items():
            self._batch_clips[target] = min(self._batch_clips[target], batch_clips)
        number = result.shard
        if number in self._committed:
            return  # a worker died and its work was repeated
        shard = self.shards[number]
        if result.size_bytes is not None:
            self._measured[result.video_id] = result.size_bytes
        arrived = self._arrived.setdefault(number, {})
        arrived[result.video_id] = _per_target(result, shard)
        if len(arrived) == len(shard.video_ids):
            self._commit(number, self._arrived.pop(number))

    def finish(self) -> list[ExtractionSummary]:
        """Update videos.parquet and return the summary of each target."""
        with exclusively(self.targets):
            return [self._summary(number, target) for number, target in enumerate(self.targets)]

    def _wanted_modes(self) -> dict[str, tuple[str, ...]]:
        """The modes of the clips of every video."""
        ids = self._videos["video_id"].to_pylist()
        if self._extraction.mode != "auto":
            return dict.fromkeys(ids, (self._extraction.mode,))
        names = self._corpus.split_names
        if len(names) > 1:
            return dict.fromkeys(ids, modes_of({}, has_several_splits=True))
        modes = {subset: modes_of({} if subset is None else {names[0]: subset}) for subset in (None, *SUBSETS)}
        subsets = pc.map_lookup(self._videos["splits"], names[0], "first").to_pylist()
        return {video_id: modes[subset] for video_id, subset in zip(ids, subsets, strict=True)}

    def _modes(self, number: int, video_id: str) -> tuple[str, ...]:
        """The modes of the clips that a store is to have of a video: the wanted ones, and those that were removed."""
        wanted = self._wanted[video_id]
        return (*wanted, *(mode for mode in self._removed[number].get(video_id, ()) if mode not in wanted))

    def _replace_videos(self, number: int) -> bool:
        """Bring a store's table of videos up to date; True if that changed anything.

        A size that the corpus does not know is the one that was measured when the file was opened, now or earlier. A
        changed video whose old features stay has its old size and segment, by which the change is found again. So has
        a video of another part: which file its features are of, only the run of that part knows.
        """
        self.targets[number].lease.check()
        store = self.targets[number].store
        videos = self._corpus.videos
        ids = videos["video_id"]
        sizes = [videos["size_bytes"]]
        if sizes[0].null_count and self._measured:
            measured = pa.array(list(self._measured)), pa.array(self._measured.values(), pa.int64())
            sizes.append(_looked_up(ids, *measured))
        if sizes[0].null_count:
            stored = store.videos()
            sizes.append(_looked_up(ids, stored["video_id"], stored["size_bytes"]))
        videos = _with_column(videos, "size_bytes", pc.coalesce(*sizes))
        changed = pa.array(list(self._changed[number]), pa.string())
        videos = _with_stored(videos, store, changed, ("size_bytes", "start_s", "end_s"))
        if len(self._videos) < len(videos):
            others = ids.filter(pc.invert(pc.is_in(ids, self._videos["video_id"])))
            others = others.filter(pc.is_in(others, store.videos()["video_id"]))
            videos = _with_stored(videos, store, others, ("path", "size_bytes", "start_s", "end_s"))
        return store.replace_videos(videos)

    def _plan(self) -> list[Shard]:
        """The pending videos, sorted by id and divided into shards."""
        paths = dict(zip(*(self._videos[name].to_pylist() for name in ("video_id", "path")), strict=True))
        segments, numbers = self._segments(), range(len(self.targets))
        shards: list[Shard] = []
        per_shard = self._extraction.videos_per_shard(len(self._corpus.videos))
        for mode in MODES:
            lacking = [self._lacking(number, mode) for number in numbers]
            anywhere = set().union(*lacking)
            pending: dict[tuple[int, ...], list[str]] = {}
            for video_id in filter(anywhere.__contains__, self._wanted):
                pending.setdefault(tuple([n for n in numbers if video_id in lacking[n]]), []).append(video_id)
            for targets, ids in sorted(pending.items()):
                for start in range(0, len(ids), per_shard):
                    part = ids[start : start + per_shard]
                    attempts = [
                        tuple(self._failed_before[number].get((video_id, mode), 0) for number in targets)
                        for video_id in part
                    ]
                    places = [paths[video_id] for video_id in part]
                    parts = [segments.get(video_id, _WHOLE) for video_id in part]
                    shards.append(Shard(mode, part, places, parts, targets, attempts))
        return shards

    def _lacking(self, number: int, mode: str) -> set[str]:
        """The videos of which a store lacks the clips of a mode."""
        wanted = {video_id for video_id, modes in self._wanted.items() if mode in modes}
        removed = {video_id for video_id, modes in self._removed[number].items() if mode in modes}
        failed = set() if self._extraction.retry_failed else {v for v, m in self._failed_before[number] if m == mode}
        return (wanted | removed) - self.targets[number].store.stored_ids(mode) - self._changed[number].keys() - failed

    def _segments(self) -> dict[str, Segment]:
        """The segments of the videos that are not whole files."""
        videos = self._videos
        rows = videos.filter(videos["start_s"].is_valid()).select(["video_id", "start_s", "end_s"]).to_pylist()
        return {row["video_id"]: (row["start_s"], row["end_s"]) for row in rows}

    def _commit(self, number: int, results: dict[str, list[VideoFeatures | Failure]]) -> None:
        """Write the failures, then the shard: once its file exists, the shard is never planned again."""
        shard = self.shards[number]
        for place, index in enumerate(shard.targets):
            store = self.targets[index].store
            self.targets[index].lease.check()
            in_order = [results[video_id][place] for video_id in shard.video_ids]
            store.add_failures([result for result in in_order if isinstance(result, Failure)])
            videos = [result for result in in_order if isinstance(result, VideoFeatures)]
            if videos:
                store.commit(store.part_name(shard.mode, shard.video_ids), shard.mode, videos)
        self._committed.add(number)

    def _done(self, number: int) -> set[str]:
        """Videos of this corpus for which a store has every mode that it is to have, of the file as it is now."""
        done = {mode: self.targets[number].store.stored_ids(mode) for mode in MODES}
        return {
            video_id
            for video_id in self._wanted.keys() & set().union(*done.values()) - self._changed[number].keys()
            if all(video_id in done[mode] for mode in self._modes(number, video_id))
        }

    def _summary(self, number: int, target: Target) -> ExtractionSummary:
        if self.shards:
            self._replace_videos(number)
        done, changed = self._done(number), self._changed[number]
        concerned = self._wanted.keys() - changed.keys()
        failures = [
            f for f in target.store.failures() if f.video_id in concerned and f.mode in self._modes(number, f.video_id)
        ]
        before = self._failed_before[number]
        tried = {f.video_id for f in failures if before.get((f.video_id, f.mode), 0) != f.attempts}
        skipped = {f.video_id for f in failures} - tried
        assert len(done) + len(tried) + len(skipped) + len(changed) == len(self._wanted), (
            "some videos are not accounted for"
        )
        return ExtractionSummary(
            store=target.store.location,
            num_videos=len(self._wanted),
            num_done=len(done),
            num_failed=len(tried),
            num_skipped=len(skipped),
            num_extracted=len(done - self._done_before[number]),
            corrected=self._corrected[number],
            failures=failures,
            changed=changed,
            notes=self._notes(number),
        )

    def _notes(self, number: int) -> list[str]:
        asked, used = self._extraction.batch_clips, self._batch_clips[number]
        reduced = f"batch_clips was reduced to {used}: the device's memory did not hold {asked}"
        return [reduced] if used < asked else []


def _per_target(result: VideoResult, shard: Shard) -> list[VideoFeatures | Failure]:
    """One result per target of the shard: features to store, or an entry of the ledger."""
    place = shard.video_ids.index(result.video_id)

    def failed(number: int, error: VideoError) -> Failure:
        attempts = shard.attempts[place][number] + 1
        path = shard.paths[place]
        return Failure(result.video_id, shard.mode, path, error.stage, error.reason, error.exception, attempts)

    results: list[VideoFeatures | Failure] = []
    for number, target in enumerate(shard.targets):
        if result.error is not None:
            results.append(failed(number, result.error))
            continue
        assert result.features is not None
        assert result.positions is not None
        assert result.geometry is not None
        features = result.features[target]
        if not np.isfinite(features).all():
            error = VideoError("backbone", "a feature is not finite in float16 (maximum 65504)")
            results.append(failed(number, error))
            continue
        results.append(VideoFeatures(result.video_id, features, result.positions, result.geometry))
    return results


def _with_column(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _with_stored(videos: pa.Table, store: ShardStore, ids: pa.Array, names: Sequence[str]) -> pa.Table:
    """The table with some columns of some videos as the store has them."""
    if not len(ids):
        return videos
    stored, keeps = store.videos(), pc.is_in(videos["video_id"], ids)
    for name in names:
        before = _looked_up(videos["video_id"], stored["video_id"], stored[name])
        videos = _with_column(videos, name, pc.if_else(keeps, before, videos[name]))
    return videos


def _looked_up(ids: pa.ChunkedArray, keys: pa.ChunkedArray, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The value of each id, by the keys of the values; null for an id that is no key."""
    return pc.take(values, pc.index_in(ids, keys))


def _videos_of_part(videos: pa.Table, part: Part | None) -> pa.Table:
    """The videos of a part of the corpus, or all."""
    if part is None:
        return videos
    ids = videos["video_id"].to_pylist()
    return videos.filter(pa.array([part_of(video_id, part.count) == part.number for video_id in ids], pa.bool_()))


def _changed_videos(store: ShardStore, corpus: Corpus, own: pa.Table) -> dict[str, str]:
    """What changed of each of its `own` videos that the store has clips of, by id; see `changed_videos`.

    Raises
    ------
    UserError
        If a video has another path: it may be one of another corpus.
    """
    with_clips = sorted(set().union(*(store.stored_ids(mode) for mode in MODES)))
    videos = corpus.videos.filter(pc.is_in(corpus.videos["video_id"], pa.array(with_clips, pa.string())))
    if not len(videos):
        return {}
    stored = store.videos()
    before = _looked_up(videos["video_id"], stored["video_id"], stored["path"])
    for row in np.flatnonzero(pc.fill_null(pc.not_equal(before, videos["path"]), False)).tolist():
        path = before[row].as_py()
        # Earlier versions stored paths with their options.
        if path.removesuffix(options_of(path)) != videos["path"][row].as_py():
            raise UserError(
                f"{videos['video_id'][row]}: expected the video that the store holds under this id (path {path}), "
                f"found {videos['path'][row]}; set --id-prefix for another corpus, or use another --store"
            )
    return changed_videos(stored, videos.filter(pc.is_in(videos["video_id"], own["video_id"])))
