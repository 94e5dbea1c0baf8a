"""What the trials say of the settings: means over seeds, intervals, and which settings cannot be told apart.

A trial's score depends on its seed, on the fold that it is validated on, and on the few videos in it. All settings have
the same seeds and folds, so that differences are paired. The bootstrap draws seeds, and within each the blocks of
groups of its fold, the same for all settings.
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
_ORDER = (FINISHED, STOPPED, FAILED)


@dataclass(frozen=True)
class SettingResult:
    """One setting: the mean objective over its seeds, its 95 % interval from `low` to `high`, and `each` seed's value.

    `behind` is how much worse it is than the best setting, over the seeds that both have, from `behind_low` to
    `behind_high`; `is_tied` if that interval contains 0 and both ran to the end: the two cannot be told apart. `state`
    is that of its trials, `failed` only if all failed; `reasons` are those of failed trials. `epochs` is the number
    that each trial ran, `seconds` the time of all.
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

    `seed` is that of the bootstrap.
    """
    by_setting: dict[str, list[TrialResult]] = {}
    for result in results:
        by_setting.setdefault(json.dumps(result.setting), []).append(result)
    scores = [_Scores(trials) for _, trials in sorted(by_setting.items())]
    # Ties in the order of their settings, so that the order does not depend on which trial ended first.
    scores.sort(key=lambda s: (_ORDER.index(s.state), -s.value if s.each else 0.0))
    if not scores:
        return []
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
        self.trials = trials
        self.scored = {trial.seed: trial for trial in sorted(trials, key=lambda t: t.seed) if trial.state != FAILED}
        self.each = {seed: trial.value for seed, trial in self.scored.items()}
        self.value = float(np.mean(list(self.each.values()))) if self.each else float("nan")
        states = {trial.state for trial in self.scored.values()}
        self.state = FAILED if not states else STOPPED if STOPPED in states else FINISHED


class _Draws:
    """Draws of the bootstrap: how often each seed, and each block of its fold, was drawn; the same for all settings."""

    def __init__(self, results: Sequence[TrialResult], seed: int) -> None:
        blocks: dict[int, int] = {}
        for trial in results:
            if trial.state != FAILED and blocks.setdefault(trial.seed, len(trial.blocks)) != len(trial.blocks):
                raise UserError(
                    f"seed {trial.seed}: expected all its trials to be validated on the same videos, found "
                    f"{blocks[trial.seed]} and {len(trial.blocks)} blocks of them; use another --run"
                )
        self.seeds = sorted(blocks)
        random = np.random.default_rng(seed)
        share = np.full(len(self.seeds), 1 / max(len(self.seeds), 1))
        self._of_seeds = random.multinomial(len(self.seeds), share, _RESAMPLES)
        self._of_blocks = {s: random.multinomial(n, np.full(n, 1 / n), _RESAMPLES) for s, n in sorted(blocks.items())}

    def means(self, scored: dict[int, TrialResult], seeds: Sequence[int]) -> np.ndarray:
        """The mean over these seeds in each draw, (draws,)."""
        columns = [self.seeds.index(seed) for seed in seeds]
        weights = self._of_seeds[:, columns].astype(float)
        weights[weights.sum(1) == 0] = 1.0  # none of them was drawn
        values = np.stack([self._resampled(scored[seed]) for seed in seeds], 1)
        return (weights * values).sum(1) / weights.sum(1)

    def _resampled(self, trial: TrialResult) -> np.ndarray:
        """The trial's score in each draw of the blocks of its fold, (draws,)."""
        right, videos = np.array(trial.blocks, float).T
        drawn = self._of_blocks[trial.seed]
        return (drawn @ right) / (drawn @ videos)


def _summary(scores: _Scores, best: _Scores, draws: _Draws) -> SettingResult:
    nan = float("nan")
    low = high = behind = behind_low = behind_high = nan
    is_tied = False
    if scores.each:
        low, high = np.percentile(draws.means(scores.scored, list(scores.each)), [2.5, 97.5]).tolist()
    common = [seed for seed in scores.each if seed in best.each]
    if common:
        behind = float(np.mean([best.each[seed] - scores.each[seed] for seed in common]))
        differences = draws.means(best.scored, common) - draws.means(scores.scored, common)
        behind_low, behind_high = np.percentile(differences, [2.5, 97.5]).tolist()
        is_tied = scores.state == FINISHED and behind_low <= 0
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
        is_tied=is_tied,
        epochs=max((trial.epochs for trial in scores.trials), default=0),
        seconds=sum(trial.seconds for trial in scores.trials),
        reasons=[trial.reason for trial in scores.trials if trial.reason],
    )
