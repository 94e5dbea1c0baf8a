"""What trials say of settings: the order, the intervals, and how often these are right."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import norm

from scale_ray.errors import UserError
from scale_ray.search import FAILED, FINISHED, STOPPED, SettingResult, TrialResult, ranked


def trial(x: object, seed: int, right: int | Sequence[int], **more: object) -> TrialResult:
    """A trial of the setting x, with so many videos right in each block of 10."""
    blocks = [[number, 10] for number in ([right] if isinstance(right, int) else right)]
    return TrialResult(**{"setting": {"x": x}, "seed": seed, "fold": seed, "state": FINISHED, "blocks": blocks, **more})


def failed(x: object, seed: int, reason: str = "out of memory") -> TrialResult:
    return TrialResult({"x": x}, seed, FAILED, reason=reason)


def names(results: Sequence[SettingResult]) -> list[object]:
    return [result.setting["x"] for result in results]


def test_settings_are_ordered_by_the_mean_over_their_seeds():
    first, second = ranked([trial("a", 0, (4, 6)), trial("a", 1, (6, 8)), trial("b", 0, (7, 7)), trial("b", 1, (7, 9))])
    assert (first.setting, second.setting) == ({"x": "b"}, {"x": "a"})
    assert (first.value, first.each) == (pytest.approx(0.75), {0: 0.7, 1: 0.8})
    assert (second.value, second.behind) == (pytest.approx(0.6), pytest.approx(0.15))
    assert second.low <= second.value <= second.high
    assert second.behind_low <= second.behind <= second.behind_high
    assert (first.behind, first.behind_low, first.behind_high, first.is_tied) == (0, 0, 0, True)


def test_the_mean_is_over_seeds_and_within_one_over_videos():
    unequal = [replace(trial("a", 0, 0), blocks=[[1, 1], [0, 3]]), replace(trial("a", 1, 0), blocks=[[6, 6]])]
    assert ranked(unequal)[0].each == {0: 0.25, 1: 1.0}
    assert ranked(unequal)[0].value == 0.625


def test_the_stopped_follow_the_finished_and_the_failed_are_last():
    results = ranked(
        [
            failed("failed", 0, "no room"),
            failed("failed", 1),
            trial("stopped", 0, (9, 9), state=STOPPED, reason="behind"),
            trial("stopped", 1, (9, 9), epochs=7, seconds=2.0),
            trial("worst", 0, (1, 1), epochs=10, seconds=1.5),
            trial("worst", 1, (1, 1), epochs=10, seconds=1.5),
            trial("best", 0, (2, 2)),
            failed("best", 1),
        ]
    )
    assert names(results) == ["best", "worst", "stopped", "failed"]
    best, worst, stopped, none = results
    assert [result.state for result in results] == [FINISHED, FINISHED, STOPPED, FAILED]
    assert (best.reasons, stopped.reasons, none.reasons) == (["out of memory"], [], ["no room", "out of memory"])
    assert (worst.epochs, worst.seconds, stopped.epochs, stopped.seconds) == (10, 3.0, 7, 2.0)
    assert not stopped.is_tied, "it did not run to the end"
    assert (none.each, none.is_tied) == ({}, False)
    assert all(math.isnan(number) for number in (none.value, none.low, none.high, none.behind, none.behind_low))


def test_without_results_there_is_no_best_setting():
    assert ranked([]) == []
    assert names(ranked([failed("b", 0), failed("a", 0)])) == ["a", "b"]


def test_equal_settings_are_tied_and_in_the_order_of_their_values():
    results = ranked([trial(x, seed, (3, 5, 6)) for seed in (0, 1) for x in ("c", "a", "b")])
    assert names(results) == ["a", "b", "c"]
    assert all((result.is_tied, result.behind, result.behind_high) == (True, 0, 0) for result in results)


def noisy(
    rng: np.random.Generator, offsets: Sequence[int], num_seeds: int = 3, num_blocks: int = 8
) -> list[TrialResult]:
    """Settings that differ by so many videos in every block; the blocks are of very different difficulty."""
    trials = []
    for seed in range(num_seeds):
        common = rng.integers(0, 9, num_blocks)
        trials += [trial(x, seed, (common + offset).tolist()) for x, offset in enumerate(offsets)]
    return trials


def test_a_small_constant_difference_is_seen_in_spite_of_common_noise(rng):
    best, second = ranked(noisy(rng, [1, 0]))
    assert best.low < second.value < best.high, "the intervals of the means overlap"
    assert not second.is_tied
    assert (second.behind_low, second.behind, second.behind_high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_result_does_not_depend_on_the_order_of_the_trials(rng):
    trials = [*noisy(rng, [0, 1, 0, 2]), failed(0, 3, "one"), failed(0, 4, "two"), trial(1, 3, [5] * 8)]
    trials = [replace(t, setting={"x": t.setting["x"], "y": 1}, seconds=0.1 * n) for n, t in enumerate(trials)]
    expected = json.dumps(list(map(asdict, ranked(trials))), sort_keys=True)
    for _ in range(3):
        shuffled = [trials[n] for n in rng.permutation(len(trials))]
        shuffled[0] = replace(shuffled[0], setting=dict(reversed(shuffled[0].setting.items())))
        assert json.dumps(list(map(asdict, ranked(shuffled))), sort_keys=True) == expected


def test_a_grown_number_of_seeds_keeps_the_earlier_values(rng):
    trials = noisy(rng, [0, 1], num_seeds=5)
    few, many = ranked([t for t in trials if t.seed < 3]), ranked(trials)
    assert [many[0].each[seed] for seed in range(3)] == list(few[0].each.values())
    assert len(many[0].each) == 5
    # While the second setting lacks the new seeds, it is compared over those that both have.
    partly = ranked([t for t in trials if t.seed < 3 or t.setting["x"] == 1])
    assert names(partly) == [1, 0]
    assert partly[1].behind == pytest.approx(0.1)


def test_a_setting_is_not_better_for_lacking_the_seed_of_a_hard_fold():
    trials = [trial("a", 0, (9, 9)), trial("a", 1, (3, 3)), trial("b", 0, (8, 8)), failed("b", 1)]
    trials += [trial("c", 0, (6, 6)), trial("c", 1, (2, 2))]
    results = ranked(trials)
    assert names(results) == ["a", "b", "c"]
    assert [result.value for result in results] == pytest.approx([0.6, 0.8, 0.4])
    assert results[1].behind == pytest.approx(0.1)


def test_settings_without_a_common_seed_cannot_be_told_apart():
    best, other = ranked([trial("a", 0, (9, 9)), trial("b", 1, (1, 1))])
    assert best.value > other.value
    assert other.is_tied
    assert math.isnan(other.behind)


@pytest.mark.parametrize(
    ("num_seeds", "num_blocks", "is_known"), [(1, 1, False), (1, 12, True), (3, 1, True), (2, 2, True)]
)
def test_one_block_of_one_seed_tells_nothing(rng, num_seeds, num_blocks, is_known):
    best, other = ranked(noisy(rng, [2, 0], num_seeds, num_blocks))
    assert (best.setting, other.behind) == ({"x": 0}, pytest.approx(0.2))
    assert other.is_tied == (not is_known)
    if not is_known:
        assert (other.low, other.high, other.behind_low, other.behind_high) == (0, 1, -1, 1)


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        (
            [trial("a", 0, (1, 2)), trial("b", 0, (1, 2, 3))],
            "fold 0: .* found 20 videos in 2 blocks and 30 videos in 3",
        ),
        ([trial("a", 0, 5), replace(trial("b", 0, 5), blocks=[[5, 11]])], "found 10 videos in 1 blocks and 11 videos"),
        ([trial("a", 0, 5, monitor="knn"), trial("b", 0, 5, monitor="halves")], "one objective, found halves and knn"),
    ],
)
def test_what_cannot_be_compared_is_refused(trials, message):
    with pytest.raises(UserError, match=f"{message}.*; use another --run"):
        ranked(trials)
    ranked([trials[0], replace(trials[1], state=FAILED)])


TRUE_TOP1 = (0.50, 0.52, 0.54, 0.56, 0.58, 0.60)


def planted(rng: np.random.Generator, num_seeds: int, seed_spread: float) -> list[TrialResult]:
    """Trials of settings whose true top-1 is known: per seed 15 blocks of 3 groups of 4 videos.

    A video is right if a normal number is low enough. It is a sum of what the videos of a group have in common, of what
    a video has in common for all settings, of the trial's luck with its seed (`seed_spread`) and of noise.
    """
    spreads = np.array([0.5, 0.5, seed_spread, 0.7])
    group, video, luck, noise = spreads / np.linalg.norm(spreads)
    trials = []
    for seed in range(num_seeds):
        common = group * rng.normal(size=(15, 3, 1)) + video * rng.normal(size=(15, 3, 4))
        for x, top1 in enumerate(TRUE_TOP1):
            score = common + luck * rng.normal() + noise * rng.normal(size=common.shape)
            right = (score < norm.ppf(top1)).sum((1, 2)).tolist()
            trials.append(TrialResult({"x": x}, seed, FINISHED, fold=seed, blocks=[[number, 12] for number in right]))
    return trials


@pytest.mark.parametrize(("num_seeds", "num_sweeps"), [(5, 200), (3, 60)])
def test_intervals_of_planted_sweeps_cover_the_truth(num_seeds, num_sweeps):
    rng = np.random.default_rng(1)
    covered, differences, best_is_tied = [], [], []
    for number in range(num_sweeps):
        results = ranked(planted(rng, num_seeds, seed_spread=0.1), seed=number)
        true = [TRUE_TOP1[result.setting["x"]] for result in results]
        covered += [result.low <= top1 <= result.high for result, top1 in zip(results, true, strict=True)]
        differences += [
            result.behind_low <= true[0] - top1 <= result.behind_high
            for result, top1 in zip(results[1:], true[1:], strict=True)
        ]
        best_is_tied.append(results[true.index(max(TRUE_TOP1))].is_tied)
    figures = [float(np.mean(numbers)) for numbers in (covered, differences, best_is_tied)]
    print(f"{num_seeds} seeds: covered {figures[0]:.3f}, differences {figures[1]:.3f}, best is tied {figures[2]:.3f}")
    assert figures[0] > 0.93
    assert figures[1] > 0.9
    assert figures[2] > 0.95
