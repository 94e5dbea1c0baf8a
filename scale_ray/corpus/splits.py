"""Splits: the subset of every video, given or drawn by a hash, and the clip modes that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from scale_ray.errors import UserError
from scale_ray.hashing import uniform_hash

SUBSETS = ("train", "validation", "test")
# The name of a split that was given no name.
DEFAULT_SPLIT = "default"

_ALIASES = {
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "training": "train",
    "testing": "test",
}


@dataclass(frozen=True)
class Splits:
    """The subsets of some videos in the splits called `names`.

    `subsets` int8 (videos, splits): a number of `SUBSETS`, or -1 for a video that the split leaves out.
    """

    names: tuple[str, ...]
    subsets: np.ndarray

    @classmethod
    def of(cls, splits: Sequence[Mapping[str, str]]) -> Splits:
        """The splits of videos that are given one by one, as subset per name of a split."""
        names = tuple(dict.fromkeys(name for subsets in splits for name in subsets))
        numbers = [[SUBSETS.index(of[name]) if name in of else -1 for name in names] for of in splits]
        return cls(names, np.array(numbers, np.int8).reshape(len(splits), len(names)))

    @property
    def num_without(self) -> int:
        """How many videos are in no split."""
        return int((self.subsets < 0).all(axis=1).sum())

    def to_maps(self) -> pa.MapArray:
        """One map per video: split name -> train, validation or test."""
        videos, splits = np.nonzero(self.subsets >= 0)
        offsets = np.searchsorted(videos, np.arange(len(self.subsets) + 1)).astype(np.int32)
        names = pa.array(self.names, pa.string()).take(pa.array(splits))
        subsets = pa.array(SUBSETS).take(pa.array(self.subsets[videos, splits]))
        return pa.MapArray.from_arrays(pa.array(offsets), names, subsets)


def subset_of(value: object) -> str | None:
    """The subset that `value` names, in any case or by a usual alias such as `val`; None if it names none."""
    name = str(value).strip().lower()
    subset = _ALIASES.get(name, name)
    return subset if subset in SUBSETS else None


def modes_of(splits: Mapping[str, str], *, has_several_splits: bool = False) -> tuple[str, ...]:
    """The clip modes that a video needs, given its splits (split name -> train, validation or test).

    Test videos need `eval` clips, all others `train` clips. A video needs both if it or its corpus has more
    than one split, because every video is then trained on in some splits and probed in others. `has_several_splits`
    states that the corpus has more than one split; a video that is missing from most of them does not show it.
    """
    if has_several_splits or len(splits) > 1:
        return ("train", "eval")
    return ("eval",) if "test" in splits.values() else ("train",)


def hashed_splits(keys: Sequence[str], labelled: np.ndarray, test_share: float) -> np.ndarray:
    """Draw a split for a corpus that has none; returns a number of `SUBSETS` for each video, int8 (videos, 1).

    Videos with the same key, their group or id, are drawn together. A video that is not `labelled` becomes a training
    video, because it cannot be used for testing.
    """
    is_test = [bool(known) and uniform_hash(key) < test_share for key, known in zip(keys, labelled, strict=True)]
    return np.where(np.array(is_test, bool), SUBSETS.index("test"), SUBSETS.index("train")).astype(np.int8)[:, None]


def check_groups(source: str, groups: pa.ChunkedArray, splits: Splits, hint: str = "") -> None:
    """Check that every group is in one subset of each split; `hint` follows the message.

    Raises
    ------
    UserError
        If a group is in two subsets of one split.
    """
    for name, divided in _divided(groups, splits):
        group, earlier, subset = divided[0]
        split = "" if name == DEFAULT_SPLIT else f" of split {name!r}"
        raise UserError(
            f"{source}: expected each group in one subset, found group {group!r} in {earlier} and {subset}{split}{hint}"
        )


def notes_on_files(files: pa.ChunkedArray, splits: Splits) -> list[str]:
    """A line on each split in which rows of one file are in several subsets: what is trained on is then tested, too."""
    notes = []
    for name, divided in _divided(files, splits):
        file, earlier, subset = divided[0]
        split = "" if name == DEFAULT_SPLIT else f" of split {name!r}"
        number = "1 file has" if len(divided) == 1 else f"{len(divided)} files have"
        notes.append(f"{number} rows in several subsets{split}, such as {file!r} in {earlier} and {subset}")
    return notes


def _divided(keys: pa.ChunkedArray, splits: Splits) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The names of splits in which videos of one key are in several subsets: these keys, each with two subsets."""
    if keys.null_count == len(keys):
        return
    encoded = keys.combine_chunks().dictionary_encode()
    values, indices = encoded.dictionary, encoded.indices.fill_null(-1).to_numpy()
    for number, name in enumerate(splits.names):
        subsets = splits.subsets[:, number]
        known = (indices >= 0) & (subsets >= 0)
        of_key, subset = indices[known], subsets[known]
        first = np.full(len(values), -1, np.int8)
        first[of_key[::-1]] = subset[::-1]
        differing = np.flatnonzero(first[of_key] != subset)
        if len(differing):
            _, places = np.unique(of_key[differing], return_index=True)
            rows = differing[np.sort(places)]
            yield (
                name,
                [(values[of_key[r]].as_py(), SUBSETS[first[of_key[r]]], SUBSETS[subset[r]]) for r in rows.tolist()],
            )


def counted(number: int, singular: str, plural: str) -> str:
    """A further part of a note, such as `; 3 videos in no split`; empty if the number is 0."""
    return f"; {number} {singular if number == 1 else plural}" if number else ""
