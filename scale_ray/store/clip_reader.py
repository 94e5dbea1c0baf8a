"""Reads stored clips: which shard holds which video, and the clips of any videos in any order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from scale_ray.clips import POSITION_FIELDS
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


def training_clips(
    store: FeatureStore, held_out_share: float = 0.0, *, split: str | None = None, everything: bool = False
) -> tuple[StoredClips, StoredClips]:
    """The `train` clips of the training subset, which the aggregator may see: the ones to train on, and held-out ones.

    About a fraction `held_out_share` of the videos is held out, by a hash of the group (of the id for videos without
    one), so that no group is in both parts. With `everything`, videos of all subsets are taken.
    """
    groups, subsets = store.groups(), store.splits(split)
    train = [video_id for video_id in groups if everything or subsets.get(video_id) == "train"]
    held_out = {video_id for video_id in train if uniform_hash(f"validation\0{groups[video_id]}") < held_out_share}
    return StoredClips(store, "train", set(train) - held_out), StoredClips(store, "train", held_out)


def _part(path: str, rows_and_places: list[tuple[int, int]]) -> _Part:
    rows, places = np.array(sorted(rows_and_places), np.int64).T
    return _Part(path, rows, places)
