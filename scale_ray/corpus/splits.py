"""Which side of which split a video is on: as given, or drawn by a hash; and the clips that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scale_ray.errors import UserError
from scale_ray.hashing import uniform_hash

SPLITS = ("train", "validation", "test")
# The name of a split that has no name of its own.
DEFAULT = "default"

_ALIASES = {
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "training": "train",
    "testing": "test",
}


def subset_of(value: object) -> str | None:
    """train, validation or test, also for its usual other names; None for anything else."""
    side = str(value).strip().lower()
    side = _ALIASES.get(side, side)
    return side if side in SPLITS else None


def modes_of(splits: Mapping[str, str], *, several: bool = False) -> tuple[str, ...]:
    """The clips that a video needs, from its splits (name -> train, validation or test).

    Test videos are seen through `eval` clips, all others through `train` clips. A video gets both where
    the splits differ, and wherever there are several: then every video is probed and trained on in turn.
    `several` says that the corpus has more than one split, which a video that is missing from most of
    them cannot tell.
    """
    if several or len(splits) > 1:
        return ("train", "eval")
    return ("eval",) if "test" in splits.values() else ("train",)


def hashed_splits(
    ids: Sequence[str], groups: Sequence[str | None], labelled: Sequence[bool], test_share: float
) -> tuple[list[dict[str, str]], str]:
    """A split for a corpus that has none, and the words for it.

    Whole groups are drawn, or single videos where there are none. A video without label is a training
    video, since nothing could be tested on it.
    """
    if not any(labelled):
        return [{DEFAULT: "train"} for _ in ids], "no labels: all videos are training videos"
    splits = [
        {DEFAULT: "test" if known and uniform_hash(group or video_id) < test_share else "train"}
        for video_id, group, known in zip(ids, groups, labelled, strict=True)
    ]
    by = "group" if any(groups) else "video"
    shares = f"about {1 - test_share:.0%} train and {test_share:.0%} test".replace("%", " %")
    return splits, f"no split given: {shares} by a hash of the {by}"


def check_groups(source: str, groups: Sequence[str | None], splits: Sequence[Mapping[str, str]]) -> None:
    """Raise a UserError where one group is on two sides of one split."""
    seen: dict[tuple[str, str], str] = {}
    for group, sides in zip(groups, splits, strict=True):
        if group is None:
            continue
        for name, side in sides.items():
            before = seen.setdefault((name, group), side)
            if before != side:
                where = "" if name == DEFAULT else f" of split {name!r}"
                raise UserError(
                    f"{source}: expected each group in one split, found group {group!r} in {before} and {side}{where}"
                )


def counted(number: int, one: str, many: str) -> str:
    """One more part of a note, such as `; 3 videos in no split`; nothing where there are none."""
    return f"; {number} {one if number == 1 else many}" if number else ""
