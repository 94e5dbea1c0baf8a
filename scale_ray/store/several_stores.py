"""Several feature stores as one to train on: data sets of one backbone and sampling, each with a weight."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scale_ray.errors import UserError
from scale_ray.files.locations import is_uri
from scale_ray.store.clip_reader import ClipFeatures, StoredClips, num_incomplete, training_clips, training_ids
from scale_ray.store.feature_store import FeatureStore


class TrainingStores:
    """One store, or several, that an aggregator is trained on.

    `weights` say how often the videos of each store are used: an epoch has a fraction of them, relative to the largest
    weight; without weights it has all.
    """

    def __init__(self, members: Sequence[FeatureStore], weights: Sequence[float] = ()) -> None:
        if weights and len(weights) != len(members):
            raise UserError(f"store_weights: expected one per store, {len(members)}, found {len(weights)}")
        self.members = list(members)
        self.shares = [weight / max(weights) for weight in weights] or [1.0] * len(members)
        first, *others = members
        for other in others:
            _check_alike(first, other)

    @classmethod
    def open(cls, locations: str, weights: Sequence[float] = ()) -> TrainingStores:
        """The stores at these locations, separated by commas.

        Raises
        ------
        UserError
            If one of them is no store, if their backbones or samplings differ, or if there are not as many weights.
        """
        names = [name for name in locations.split(",") if name]
        # A local folder may have a comma in its name.
        if len(names) > 1 and not any(map(is_uri, names)) and FeatureStore.is_store(locations):
            names = [locations]
        return cls([FeatureStore(name) for name in names or [locations]], weights)

    @property
    def location(self) -> str:
        """The locations, separated by commas."""
        return ",".join(store.location for store in self.members)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Backbone, weights and sampling, which all of the stores have in common."""
        return self.members[0].fingerprint

    @property
    def origin(self) -> dict[str, Any]:
        """See `FeatureStore.origin`."""
        return self.members[0].origin

    def labels(self) -> Mapping[str, str]:
        """Label of every labelled video, by id."""
        return ChainMap(*(store.labels() for store in self.members))

    def groups(self) -> Mapping[str, str]:
        """Group of every video, by id; a video without one is its own group."""
        return ChainMap(*(store.groups() for store in self.members))

    def training_clips(
        self, held_out_share: float = 0.0, *, split: str | None = None, everything: bool = False, mode: str = "train"
    ) -> tuple[StoredClips, StoredClips]:
        """The clips to train on, and those of the held-out videos: see `clip_reader.training_clips`.

        Raises
        ------
        UserError
            If a store has no training videos, or so few that its weight leaves none of them; if a video is in two
            stores, or the stores have different numbers of clips per video.
        """
        options = {"split": split, "everything": everything, "mode": mode}
        found = [training_clips(store, held_out_share, **options) for store in self.members]  # type: ignore[arg-type]
        if len(found) == 1:
            return found[0]
        train, held_out = ([clips for clips in part if len(clips)] for part in zip(*found, strict=True))
        for store, (clips, _), share in zip(self.members, found, self.shares, strict=True):
            if not round(len(clips) * share):
                raise UserError(
                    f"store: expected training videos of every store in an epoch, found {len(clips)} in "
                    f"{store.location}, of which an epoch uses none"
                )
        return (
            JoinedClips(train, self.shares),
            JoinedClips(held_out, [1.0] * len(held_out)) if held_out else found[0][1],
        )

    def num_incomplete(self, mode: str, *, split: str | None, everything: bool) -> int:
        """How many training videos lack clips that a mode asks for: see `clip_reader.num_incomplete`."""
        ids = (training_ids(store, split=split, everything=everything) for store in self.members)
        return sum(num_incomplete(store, mode, of_store) for store, of_store in zip(self.members, ids, strict=True))


class JoinedClips(StoredClips):
    """The clips of several stores, one after the other; `shares` (0, 1] are the fractions that an epoch uses."""

    def __init__(self, members: Sequence[StoredClips], shares: Sequence[float]) -> None:
        self.members, self.shares = list(members), list(shares)
        first = self.members[0]
        self.store, self.mode = first.store, first.mode
        self.num_clips, self.feature_width = first.num_clips, first.feature_width
        for other in self.members[1:]:
            found = (other.num_clips, other.feature_width)
            if found != (self.num_clips, self.feature_width):
                raise UserError(
                    f"store: expected stores with the same number of clips per video and feature width, found "
                    f"{self.num_clips} x {self.feature_width} in {first.store.location} and {found[0]} x {found[1]} in "
                    f"{other.store.location}"
                )
        self.video_ids = [video_id for member in self.members for video_id in member.video_ids]
        self._starts = np.cumsum([0, *(len(member) for member in self.members)])
        self._member_of = {i: number for number, member in enumerate(self.members) for i in member.video_ids}
        if len(self._member_of) < len(self.video_ids):
            twice = len(self.video_ids) - len(self._member_of)
            raise UserError(
                f"store: expected stores without common videos, found {twice} ids that are in two of them; extract "
                "one store again with --id-prefix"
            )
        self.parts = [part for member in self.members for part in member.parts]
        self._part_of = [
            (number, part) for number, member in enumerate(self.members) for part in range(len(member.parts))
        ]

    @property
    def paths(self) -> list[str]:
        return [path for member in self.members for path in member.paths]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        pairs = zip(self.members, self.shares, strict=True)
        return [(len(member), round(len(member) * share)) for member, share in pairs]

    def block_of_part(self, part: int) -> int:
        """See `StoredClips.block_of_part`."""
        return self._part_of[part][0]

    def read_into(self, features: np.ndarray, positions: np.ndarray) -> None:
        """As of one store; see `StoredClips.read_into`."""
        for member, start in zip(self.members, self._starts, strict=False):
            here = slice(start, start + len(member))
            member.read_into(features[here], positions[here])

    def read_positions(self) -> np.ndarray:
        """As of one store; see `StoredClips.read_positions`."""
        return np.concatenate([member.read_positions() for member in self.members])

    def read_rows(self, part: int, begin: int, end: int) -> ClipFeatures:
        """As of one store; see `StoredClips.read_rows`."""
        number, own_part = self._part_of[part]
        return self.members[number].read_rows(own_part, begin, end)

    def read_videos(self, video_ids: Sequence[str]) -> ClipFeatures:
        """As of one store; see `StoredClips.read_videos`."""
        members = np.array([self._member_of[video_id] for video_id in video_ids], np.int64)
        features = np.empty((len(video_ids), *self.shapes[0][1:]), np.float16)
        positions = np.empty((len(video_ids), *self.shapes[1][1:]), np.float32)
        for number in np.unique(members):
            rows = np.flatnonzero(members == number)
            read = self.members[number].read_videos([video_ids[row] for row in rows.tolist()])
            features[rows], positions[rows] = read.features, read.positions
        return ClipFeatures(list(video_ids), features, positions)


def _check_alike(first: FeatureStore, other: FeatureStore) -> None:
    names = first.fingerprint.keys() | other.fingerprint.keys()
    for name in sorted(names):
        expected, found = first.fingerprint.get(name), other.fingerprint.get(name)
        if expected != found:
            raise UserError(
                f"store: expected stores of one backbone and sampling, found {name} {expected!r} in {first.location} "
                f"and {found!r} in {other.location}"
            )
