from __future__ import annotations

import pytest

from scale_ray.errors import UserError
from scale_ray.search import blocks_of, folds_of, right_by_block


def test_folds_are_of_about_equal_size_and_keep_groups_together():
    groups = {f"video-{n:03d}": f"group-{n % 17}" for n in range(200)}
    folds = folds_of(groups, 4)
    sizes = [list(folds.values()).count(fold) for fold in range(4)]
    assert sum(sizes) == 200
    assert max(sizes) - min(sizes) <= 13, "a group has 11 or 12 videos"
    for group in set(groups.values()):
        assert len({folds[video_id] for video_id, of in groups.items() if of == group}) == 1
    assert folds_of(dict(reversed(groups.items())), 4) == folds, "the order of the videos does not matter"


def test_a_large_group_does_not_unbalance_the_folds():
    groups = {f"v{n}": "large" if n < 50 else f"g{n}" for n in range(100)}
    sizes = sorted(list(folds_of(groups, 2).values()).count(fold) for fold in range(2))
    assert sizes == [50, 50]


def test_more_folds_than_groups_are_refused():
    with pytest.raises(UserError, match="folds: expected at most 2, the number of groups of training videos, found 3"):
        folds_of({"a": "x", "b": "x", "c": "y"}, 3)


def test_blocks_are_groups_and_at_most_64():
    assert blocks_of(["b", "a", "b", "c"]) == [1, 0, 1, 2]
    many = [f"group-{n}" for n in range(5000)]
    blocks = blocks_of(many)
    assert set(blocks) == set(range(64))
    assert blocks_of(many[::-1]) == blocks[::-1]


def test_the_right_videos_are_counted_by_block():
    assert right_by_block([True, False, True, True], [5, 2, 5, 2]) == [[1, 2], [2, 2]]
