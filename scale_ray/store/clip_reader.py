"""Reads stored clips: which shard holds which video, and the clips of any videos in any order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scale_ray.clips import MODES, POSITION_FIELDS
from scale_ray.errors import UserError
from scale_ray.hashing import uniform_hash
from scale_ray.store.clip_lists import CLIP_COLUMNS, ClipLists, read_clip_lists
from scale_ray.store.feature_store import FeatureStore

# Shards that are read concurrently: object stores have a high latency and a high throughput.
_SHARDS_AT_ONCE = 8


@dataclass(frozen=True)
class ClipFeatures:
    """Clips of several videos, in the order of `video_ids`.

    `features` float16 (videos, clips, D); `positions` float32 (videos, clips, 7), in pixels and seconds.
    """

    video_ids: list[str]
    features: np.ndarray
    positions: np.ndarray

    def subset(self, rows: Sequence[int] | np.ndarray) -> ClipFeatures:
        return ClipFeatures([self.video_ids[row] for row in rows], self.features[rows], self.positions[rows])


@dataclass(frozen=True)
class _Part:
    """A shard: its path, which of its rows are wanted, and their indices into `StoredClips.video_ids`."""

    path: str
    rows: np.ndarray
    places: np.ndarray


class StoredClips:
    """The clips of one mode for some videos of a store: ids are listed on opening, clips are read on request.

    All videos must have the same number of clips, as those that `extract` writes have: that of the first one.
    `video_ids` are sorted; a place is an index into them. If two shards hold the same video, as during a compaction,
    one of them is used.

    Raises
    ------
    UserError
        On opening and on reading, if a shard is damaged or a video has another number of clips: the message names
        the shard.
    """

    def __init__(self, store: FeatureStore, mode: str, wanted: Collection[str] | None = None) -> None:
        self.store, self.mode = store, mode
        paths = store.parts(f"features/part-{mode}-")
        with ThreadPoolExecutor(_SHARDS_AT_ONCE) as threads:
            listed = list(threads.map(lambda path: store.read_part(path, ["video_id"])["video_id"].to_pylist(), paths))
        row_of: dict[str, tuple[int, int]] = {}
        for part, ids in enumerate(listed):
            for row, video_id in enumerate(ids):
                if wanted is None or video_id in wanted:
                    row_of.setdefault(video_id, (part, row))
        self.video_ids = sorted(row_of)
        rows_by_part: dict[int, list[tuple[int, int]]] = {}
        for place, video_id in enumerate(self.video_ids):
            part, row = row_of[video_id]
            rows_by_part.setdefault(part, []).append((row, place))
        self.parts = [_part(paths[part], rows_by_part[part]) for part in sorted(rows_by_part)]
        self.num_clips, self.feature_width = self._clip_shape(self.parts[0]) if self.parts else (0, 0)

    def __len__(self) -> int:
        return len(self.video_ids)

    @property
    def paths(self) -> list[str]:
        """The shards that hold the videos."""
        return [part.path for part in self.parts]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Numbers of consecutive videos, and how many of them an epoch uses: of several stores one block each."""
        return [(len(self), len(self))]

    def block_of_part(self, part: int) -> int:
        """The block that a shard's videos are in."""
        return 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all clips: features and positions."""
        return len(self) * self.num_clips * (2 * self.feature_width + 4 * len(POSITION_FIELDS))

    @property
    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Shapes of the features (float16) and of the positions (float32) of all videos."""
        return (
            (len(self), self.num_clips, self.feature_width),
            (len(self), self.num_clips, len(POSITION_FIELDS)),
        )

    def read_into(self, features: np.ndarray, positions: np.ndarray) -> None:
        """Read all videos, each to its place in the arrays; only a few shards are in memory at once."""
        with ThreadPoolExecutor(_SHARDS_AT_ONCE) as threads:
            list(threads.map(lambda part: self._fill(part, features, positions), self.parts))

    def read(self) -> ClipFeatures:
        features_shape, positions_shape = self.shapes
        features, positions = np.empty(features_shape, np.float16), np.empty(positions_shape, np.float32)
        self.read_into(features, positions)
        return ClipFeatures(self.video_ids, features, positions)

    def read_positions(self) -> np.ndarray:
        """The positions alone, float32 (videos, clips, 7), in pixels and seconds."""
        positions = np.empty(self.shapes[1], np.float32)
        for part in self.parts:
            [values] = self._arrays(part, ["positions"])
            positions[part.places] = values[part.rows]
        return positions

    def read_rows(self, part: int, begin: int, end: int) -> ClipFeatures:
        """The wanted rows from `begin` to before `end` of one shard, in the order of the shard."""
        chosen = self.parts[part]
        rows = chosen.rows[begin:end]
        features, positions = (values[rows] for values in self._arrays(chosen))
        return ClipFeatures([self.video_ids[place] for place in chosen.places[begin:end]], features, positions)

    def read_videos(self, video_ids: Sequence[str]) -> ClipFeatures:
        """These of the videos, in the order of the ids; each of their shards is read once."""
        places = [bisect_left(self.video_ids, video_id) for video_id in video_ids]
        parts, rows = self._parts_and_rows[:, places]
        features = np.empty((len(places), *self.shapes[0][1:]), np.float16)
        positions = np.empty((len(places), *self.shapes[1][1:]), np.float32)
        for part in np.unique(parts):
            here = parts == part
            features[here], positions[here] = (values[rows[here]] for values in self._arrays(self.parts[part]))
        return ClipFeatures(list(video_ids), features, positions)

    @cached_property
    def _parts_and_rows(self) -> np.ndarray:
        """Of every place the number of its shard, and its row there, int64 (2, videos)."""
        found = np.empty((2, len(self)), np.int64)
        for number, part in enumerate(self.parts):
            found[:, part.places] = np.stack([np.full(len(part.rows), number), part.rows])
        return found

    def _fill(self, part: _Part, features: np.ndarray, positions: np.ndarray) -> None:
        for target, values in zip((features, positions), self._arrays(part), strict=True):
            target[part.places] = values[part.rows]

    def _clip_shape(self, part: _Part) -> tuple[int, int]:
        """Clips of the first wanted video of a shard, and the feature width."""
        positions = read_clip_lists(self.store.read_part(part.path, ["positions"]), "positions", part.path)
        return int(positions.lengths[part.rows[0]]), self.store.width_of_part(part.path)

    def _arrays(self, part: _Part, names: Sequence[str] = CLIP_COLUMNS) -> list[np.ndarray]:
        """These columns of a shard, each (videos of the shard, clips, W)."""
        table = self.store.read_part(part.path, list(names))
        return [self._stacked(read_clip_lists(table, name, part.path), name, part.path) for name in names]

    def _stacked(self, lists: ClipLists, name: str, path: str) -> np.ndarray:
        """The lists as one array; refused if they do not fit the other shards, instead of stretched in silence."""
        _, clips, width = self.shapes[CLIP_COLUMNS.index(name)]
        others = np.flatnonzero(lists.lengths != clips)
        if len(others) or lists.values.shape[1] != width:
            row = int(others[0]) if len(others) else 0
            video_id = self.store.read_part(path, ["video_id"])["video_id"][row].as_py()
            raise UserError(
                f"{path}: expected {name} of {clips} clips x {width} numbers per video as in other shards, found "
                f"{lists.lengths[row]} x {lists.values.shape[1]} of {video_id!r}; delete it and extract again"
            )
        return lists.values.reshape(len(lists.lengths), clips, width)


class PooledClips(StoredClips):
    """The clips of two modes as one pool per video: the N1 clips of the first mode, then the N2 of the second.

    Only videos that have both are in it. The shards of the first mode give the order in which videos are streamed.
    """

    def __init__(self, store: FeatureStore, modes: tuple[str, str], wanted: Collection[str] | None = None) -> None:
        self.store, self.mode = store, "+".join(modes)
        second = StoredClips(store, modes[1], wanted)
        self._first = StoredClips(store, modes[0], set(second.video_ids))
        with_both = set(self._first.video_ids)
        self._second = second if len(second) == len(with_both) else StoredClips(store, modes[1], with_both)
        self.video_ids, self.parts = self._first.video_ids, self._first.parts
        self.num_clips = self._first.num_clips + self._second.num_clips
        self.feature_width = self._first.feature_width

    @property
    def paths(self) -> list[str]:
        return [*self._first.paths, *self._second.paths]

    def read_into(self, features: np.ndarray, positions: np.ndarray) -> None:
        """As of one mode; see `StoredClips.read_into`."""
        split = self._first.num_clips
        self._first.read_into(features[:, :split], positions[:, :split])
        self._second.read_into(features[:, split:], positions[:, split:])

    def read_positions(self) -> np.ndarray:
        """As of one mode; see `StoredClips.read_positions`."""
        return np.concatenate([self._first.read_positions(), self._second.read_positions()], 1)

    def read_rows(self, part: int, begin: int, end: int) -> ClipFeatures:
        """The wanted rows of a shard of the first mode, with the clips of the second one from wherever they are."""
        first = self._first.read_rows(part, begin, end)
        return _side_by_side(first, self._second.read_videos(first.video_ids))

    def read_videos(self, video_ids: Sequence[str]) -> ClipFeatures:
        """As of one mode; see `StoredClips.read_videos`."""
        return _side_by_side(self._first.read_videos(video_ids), self._second.read_videos(video_ids))


def open_clips(store: FeatureStore, mode: str, wanted: Collection[str] | None = None) -> StoredClips:
    """The clips of a mode, or those of two as a pool: `train+augmented`."""
    modes = mode.split("+")
    return StoredClips(store, mode, wanted) if len(modes) == 1 else PooledClips(store, (modes[0], modes[1]), wanted)


def num_incomplete(store: FeatureStore, mode: str, video_ids: Iterable[str]) -> int:
    """How many of these videos have clips in the store, but not all that a mode, or a pool of two, asks for."""
    stored = {name: store.stored_ids(name) for name in MODES}
    complete = set.intersection(*(stored[name] for name in mode.split("+")))
    return len((set(video_ids) & set().union(*stored.values())) - complete)


def check_modes(store: FeatureStore, option: str, mode: str) -> None:
    """Check that a store has clips of every mode that an option asks for.

    Raises
    ------
    UserError
        If it has none of one of them: the message says which it has, and how to add the others.
    """
    present = [name for name in MODES if store.parts(f"features/part-{name}-")]
    for name in mode.split("+"):
        if name not in present:
            raise UserError(
                f"{option}: expected a store with {name} clips, found one with {' and '.join(present) or 'no'} clips; "
                f"add them with: scale-ray extract VIDEOS --store {store.location} --mode {name}"
            )


def training_ids(store: FeatureStore, *, split: str | None = None, everything: bool = False) -> list[str]:
    """The videos of the training subset; with `everything` those of all subsets."""
    subsets = store.splits(split)
    return [video_id for video_id in store.groups() if everything or subsets.get(video_id) == "train"]


def training_clips(
    store: FeatureStore,
    held_out_share: float = 0.0,
    *,
    split: str | None = None,
    everything: bool = False,
    mode: str = "train",
) -> tuple[StoredClips, StoredClips]:
    """The clips of the training subset, which the aggregator may see: the ones to train on, and held-out ones.

    They are of one mode, or of the pool of two (`train+augmented`). About a fraction `held_out_share` of the videos is
    held out, by a hash of the group (of the id for videos without one), so that no group is in both parts. With
    `everything`, videos of all subsets are taken.
    """
    groups, train = store.groups(), training_ids(store, split=split, everything=everything)
    held_out = {video_id for video_id in train if uniform_hash(f"validation\0{groups[video_id]}") < held_out_share}
    return open_clips(store, mode, set(train) - held_out), open_clips(store, mode, held_out)


def _side_by_side(first: ClipFeatures, second: ClipFeatures) -> ClipFeatures:
    """The clips of the same videos, one after the other."""
    return ClipFeatures(
        first.video_ids,
        np.concatenate([first.features, second.features], 1),
        np.concatenate([first.positions, second.positions], 1),
    )


def _part(path: str, rows_and_places: list[tuple[int, int]]) -> _Part:
    rows, places = np.array(sorted(rows_and_places), np.int64).T
    return _Part(path, rows, places)
