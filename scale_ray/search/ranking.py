"""What the trials say of the settings: means over seeds, intervals, and which settings cannot be told apart.

A trial's score depends on its seed, on the fold that it is validated on, and on the few videos in it. All settings have
the same seeds and folds, so that differences are paired. The bootstrap draws seeds, and within each the blocks of
groups of its fold, the same for all settings. With one seed its intervals hold for this seed alone: how much another
seed would change is not known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scale_ray.errors import UserError
from scale_ray.search.settings import Setting
from scale_ray.search.trials import FAILED, FINISHED, STOPPED, TrialResult

_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)  # percentiles
_ORDER = (FINISHED, STOPPED, FAILED)


@dataclass(frozen=True)
class SettingResult:
    """One setting: the mean objective over its seeds, its 95 % interval from `low` to `high`, and `each` seed's value.

    `behind` is how much worse it is than the best setting, over the seeds that both have (NaN if there are none), with
    the 95 % interval from `behind_low` to `behind_high`. `is_tied` says that it ran to the end, and is not worse than
    the best one beyond doubt. `state` is that of its trials, `failed` only if all failed; `reasons` are those of
    failed trials. `epochs` is the number that each trial ran, `seconds` the time of all.
    """

    setting: Setting
    state: str
    value: float
    low: float
    high: float
    each: dict[int, float]
    behind: float
    behind_low: float
    behind_high: float
    is_tied: bool
    epochs: int
    seconds: float
    reasons: list[str]


def ranked(results: Sequence[TrialResult], seed: int = 0) -> list[SettingResult]:
    """The settings, best first: those that ran to the end, then those that were stopped early, then those that failed.

    If some trials are missing, settings are ordered by their means without the effects of seeds: one that lacks the
    seed of a hard fold is not better for it. `seed` is that of the bootstrap.

    Raises
    ------
    UserError
        If trials have different objectives, or those of one fold different videos.
    """
    monitors = sorted({result.monitor for result in results if result.state != FAILED})
    if len(monitors) > 1:
        raise UserError(f"expected trials with one objective, found {' and '.join(monitors)}; use another --run")
    by_setting: dict[str, list[TrialResult]] = {}
    for result in results:
        by_setting.setdefault(json.dumps(result.setting, sort_keys=True), []).append(result)
    scores = [_Scores(trials) for _, trials in sorted(by_setting.items())]
    if not scores:
        return []
    # Ties in the order of their settings, so that the order does not depend on which trial ended first.
    comparable = dict(zip(map(id, scores), _comparable_means(scores), strict=True))
    scores.sort(key=lambda s: (_ORDER.index(s.state), -comparable[id(s)]))
    draws = _Draws(results, seed)
    return [_summary(s, scores[0], draws) for s in scores]


def best_so_far(results: Sequence[TrialResult]) -> tuple[Setting, float] | None:
    """The setting with the highest mean over its seeds so far, and that mean; None if no trial has a score."""
    values: dict[str, list[TrialResult]] = {}
    for result in results:
        if result.state != FAILED:
            values.setdefault(json.dumps(result.setting), []).append(result)
    means = [(float(np.mean([trial.value for trial in trials])), trials[0].setting) for trials in values.values()]
    return max(((setting, mean) for mean, setting in means), key=lambda pair: pair[1], default=None)


class _Scores:
    """The trials of one setting that did not fail, by seed."""

    def __init__(self, trials: Sequence[TrialResult]) -> None:
        self.trials = sorted(trials, key=lambda trial: trial.seed)
        self.scored = {trial.seed: trial for trial in self.trials if trial.state != FAILED}
        self.each = {seed: trial.value for seed, trial in self.scored.items()}
        self.value = float(np.mean(list(self.each.values()))) if self.each else float("nan")
        states = {trial.state for trial in self.scored.values()}
        self.state = FAILED if not states else STOPPED if STOPPED in states else FINISHED


def _comparable_means(scores: Sequence[_Scores]) -> list[float]:
    """The mean of each setting; if some lack seeds, without the effects of seeds by least squares. 0 if all failed."""
    scored = [s for s in scores if s.each]
    seeds = sorted({seed for s in scored for seed in s.each})
    if all(len(s.each) == len(seeds) for s in scored):
        return [s.value if s.each else 0.0 for s in scores]
    entries = [(row, seeds.index(seed), value) for row, s in enumerate(scores) for seed, value in s.each.items()]
    design = np.zeros((len(entries), len(scores) + len(seeds)))
    for number, (row, column, _) in enumerate(entries):
        design[number, [row, len(scores) + column]] = 1
    values = np.array([value for *_, value in entries])
    effects = np.linalg.lstsq(design, values - values.mean(), rcond=None)[0]
    return effects[: len(scores)].round(9).tolist()  # equal settings stay equal in spite of rounding errors


class _Draws:
    """Draws of the bootstrap: how often each seed, and each block of its fold, was drawn; the same for all settings."""

    def __init__(self, results: Sequence[TrialResult], seed: int) -> None:
        blocks: dict[int, list[int]] = {}
        for trial in results:
            videos = [block[1] for block in trial.blocks]
            if trial.state != FAILED and blocks.setdefault(trial.fold, videos) != videos:
                one, other = (f"{sum(v)} videos in {len(v)} blocks" for v in sorted([blocks[trial.fold], videos]))
                raise UserError(
                    f"fold {trial.fold}: expected all its trials to be validated on the same videos, found "
                    f"{one} and {other}; use another --run"
                )
        folds = {trial.seed: trial.fold for trial in results if trial.state != FAILED}
        self.seeds = sorted(folds)
        random = np.random.default_rng(seed)
        self._of_seeds = _drawn(random, len(self.seeds))
        # Seeds beyond the number of folds share the videos of one, and what was drawn of them.
        of_folds = {fold: _drawn(random, len(blocks[fold])) for fold in sorted(blocks)}
        self._of_blocks = {seed: of_folds[fold] for seed, fold in folds.items()}

    def differ(self, seeds: Sequence[int]) -> bool:
        """Whether there is anything to draw from: a single block of a single seed gives no interval."""
        return len(seeds) > 1 or self._of_blocks[seeds[0]].shape[1] > 1

    def means(self, scored: dict[int, TrialResult], seeds: Sequence[int]) -> np.ndarray:
        """The mean over these seeds in each draw, (draws,)."""
        columns = [self.seeds.index(seed) for seed in seeds]
        weights = self._of_seeds[:, columns]
        weights[weights.sum(1) == 0] = 1.0  # none of them was drawn
        values = np.stack([self._resampled(scored[seed]) for seed in seeds], 1)
        return (weights * values).sum(1) / weights.sum(1)

    def _resampled(self, trial: TrialResult) -> np.ndarray:
        """The trial's score in each draw of the blocks of its fold, (draws,)."""
        right, videos = np.array(trial.blocks, float).T
        drawn = self._of_blocks[trial.seed]
        return (drawn @ right) / (drawn @ videos)


def _drawn(random: np.random.Generator, num_items: int) -> np.ndarray:
    """How often each of the items is drawn if as many are drawn with replacement, (draws, items)."""
    if num_items == 0:  # all trials failed
        return np.zeros((_RESAMPLES, 0))
    return random.multinomial(num_items, np.full(num_items, 1 / num_items), _RESAMPLES).astype(float)


def _summary(scores: _Scores, best: _Scores, draws: _Draws) -> SettingResult:
    nan = float("nan")
    low = high = behind = behind_low = behind_high = nan
    if scores.each:
        low, high = 0.0, 1.0
        if draws.differ(list(scores.each)):
            low, high = np.percentile(draws.means(scores.scored, list(scores.each)), _INTERVAL).tolist()
    common = [seed for seed in scores.each if seed in best.each]
    if common:
        behind = float(np.mean([best.each[seed] - scores.each[seed] for seed in common]))
        behind_low, behind_high = -1.0, 1.0
        if draws.differ(common):
            differences = draws.means(best.scored, common) - draws.means(scores.scored, common)
            behind_low, behind_high = np.percentile(differences, _INTERVAL).tolist()
    return SettingResult(
        setting=scores.trials[0].setting,
        state=scores.state,
        value=scores.value,
        low=low,
        high=high,
        each=scores.each,
        behind=behind,
        behind_low=behind_low,
        behind_high=behind_high,
        is_tied=scores.state == FINISHED and not behind_low > 0,
        epochs=max((trial.epochs for trial in scores.trials), default=0),
        seconds=sum(trial.seconds for trial in scores.trials),
        reasons=[trial.reason for trial in scores.trials if trial.state == FAILED and trial.reason],
    )
