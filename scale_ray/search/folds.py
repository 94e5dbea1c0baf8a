"""The folds of a search: parts of the training videos. A trial trains without one of them, and is validated on it."""

from __future__ import annotations

from collections.abc import Mapping

from scale_ray.errors import UserError
from scale_ray.hashing import uniform_hash

# So many blocks of groups at most are drawn by the bootstrap: the results of a trial stay small for any corpus.
_MAX_BLOCKS = 64


def folds_of(groups: Mapping[str, str], count: int) -> dict[str, int]:
    """The fold of every video, 0 to `count` - 1, of about equal sizes; a group is in one fold.

    `groups` holds the group of every video by its id. Depends on them alone.

    Raises
    ------
    UserError
        If there are fewer groups than folds.
    """
    sizes: dict[str, int] = {}
    for group in groups.values():
        sizes[group] = sizes.get(group, 0) + 1
    if len(sizes) < count:
        raise UserError(f"folds: expected at most {len(sizes)}, the number of groups of training videos, found {count}")
    filled = [0] * count
    fold_of_group: dict[str, int] = {}
    # The largest first, each into the fold with the fewest videos; equal ones in random order.
    for group in sorted(sizes, key=lambda group: (-sizes[group], uniform_hash(f"fold\0{group}"), group)):
        fold = min(range(count), key=filled.__getitem__)
        fold_of_group[group] = fold
        filled[fold] += sizes[group]
    return {video_id: fold_of_group[group] for video_id, group in groups.items()}


def blocks_of(groups: list[str]) -> list[int]:
    """The block of every video of a fold, counted from 0: its group's, or a hash's of the group if there are many."""
    names = sorted(set(groups))
    if len(names) <= _MAX_BLOCKS:
        numbers = {name: number for number, name in enumerate(names)}
    else:
        numbers = {name: int(uniform_hash(f"block\0{name}") * _MAX_BLOCKS) for name in names}
    return [numbers[group] for group in groups]


def right_by_block(right: list[bool], blocks: list[int]) -> list[list[int]]:
    """Per block how many of its videos are right, and how many there are; blocks without videos are left out."""
    counts: dict[int, list[int]] = {}
    for is_right, block in zip(right, blocks, strict=True):
        count = counts.setdefault(block, [0, 0])
        count[0] += is_right
        count[1] += 1
    return [counts[block] for block in sorted(counts)]
