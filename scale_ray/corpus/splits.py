"""Splits: the subset of every video, given or drawn by a hash, and the clip modes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def hashed_splits(
    ids: Sequence[str], groups: Sequence[str | None], labelled: Sequence[bool], test_share: float
) -> tuple[list[dict[str, str]], str]:
    """Draw a split for a corpus that has none; returns the splits of each video and a note on the draw.

    Groups are drawn as a whole, videos without a group one by one. A video without a label becomes a training
    video, because it cannot be used for testing.
    """
    if not any(labelled):
        return [{DEFAULT_SPLIT: "train"} for _ in ids], "no labels: all videos are training videos"
    splits = [
        {DEFAULT_SPLIT: "test" if is_labelled and uniform_hash(group or video_id) < test_share else "train"}
        for video_id, group, is_labelled in zip(ids, groups, labelled, strict=True)
    ]
    unit = "group" if any(groups) else "video"
    fractions = f"about {1 - test_share:.0%} train and {test_share:.0%} test".replace("%", " %")
    return splits, f"no split given: {fractions} by a hash of the {unit}"


def check_groups(source: str, groups: Sequence[str | None], splits: Sequence[Mapping[str, str]]) -> None:
    """Check that every group is in one subset of each split.

    Raises
    ------
    UserError
        If a group is in two subsets of one split.
    """
    subset_of_group: dict[tuple[str, str], str] = {}
    for group, subsets in zip(groups, splits, strict=True):
        if group is None:
            continue
        for name, subset in subsets.items():
            earlier = subset_of_group.setdefault((name, group), subset)
            if earlier != subset:
                split = "" if name == DEFAULT_SPLIT else f" of split {name!r}"
                raise UserError(
                    f"{source}: expected each group in one subset, "
                    f"found group {group!r} in {earlier} and {subset}{split}"
                )


def counted(number: int, singular: str, plural: str) -> str:
    """A further part of a note, such as `; 3 videos in no split`; empty if the number is 0."""
    return f"; {number} {singular if number == 1 else plural}" if number else ""
