"""What the figures of a sweep show, as PNG files and as an interactive page: positions, texts and summaries."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scale_ray.config import Domain, Range
from scale_ray.console import shortened
from scale_ray.search import FAILED, FINISHED, STOPPED, Setting, SettingResult, TrialResult

COLOURS = "viridis"
# With more settings, colours no longer tell them apart.
MAX_COLOURED_SETTINGS = 10
MAX_VALUE = 18
_TITLES = {
    "knn_top1": "k-NN top-1 of held-out training videos",
    "linear_top1": "linear probe top-1 of held-out training videos",
    "halves_top1": "halves of a video that find each other",
}
_HEAT_MAP_OPTIONS = ("sets.mask_ratio", "sets.set_size")
_MAX_TITLE, _MAX_REASON = 60, 200
_MIN_FOR_IMPORTANCE = 4


def objective_title(trials: Sequence[TrialResult]) -> str:
    """The objective in words."""
    monitor = next((trial.monitor for trial in trials if trial.monitor), "objective")
    return _TITLES.get(monitor, shortened(monitor, _MAX_TITLE))


def option_title(name: str) -> str:
    """The name of an option without its section."""
    return name.rpartition(".")[2]


def value_text(value: Any, most: int = MAX_VALUE) -> str:
    """A value of an option in at most `most` characters."""
    return shortened(f"{value:.4g}" if isinstance(value, float) else str(value), most)


def setting_parts(setting: Setting, most: int = MAX_VALUE) -> list[str]:
    """Each option of a setting without its section, with its value in at most `most` characters."""
    return [f"{option_title(name)} {value_text(value, most)}" for name, value in setting.items()]


def state_text(result: SettingResult) -> str:
    """How the trials of a setting ended, and why those failed that did."""
    if not result.reasons:
        return result.state
    state = FAILED if result.state == FAILED else f"{result.state}, {len(result.reasons)} failed"
    return shortened(f"{state}: {'; '.join(dict.fromkeys(result.reasons))}", _MAX_REASON)


def interval_text(result: SettingResult) -> str:
    """The 95 % interval of a setting that has a result."""
    return f"{result.low:.3f}..{result.high:.3f}"


def searched(space: Mapping[str, Domain]) -> dict[str, Domain]:
    """The options of which more than one value was tried."""
    return {name: domain for name, domain in space.items() if isinstance(domain, Range) or len(domain) > 1}


def scored(settings: Sequence[SettingResult]) -> list[SettingResult]:
    """The settings that have a result: those that did not fail."""
    return [result for result in settings if result.each]


def finished(settings: Sequence[SettingResult]) -> list[SettingResult]:
    """The settings that ran to the end."""
    return [result for result in settings if result.state == FINISHED]


def spread(results: Sequence[SettingResult]) -> np.ndarray:
    """The lengths of the intervals below and above the means, (2, settings)."""
    # A percentile interval need not contain the mean itself.
    return np.maximum([[r.value - r.low for r in results], [r.high - r.value for r in results]], 0)


def objective_range(settings: Sequence[SettingResult]) -> tuple[float, float]:
    """The lowest and the highest mean, a little apart if they are equal."""
    values = [result.value for result in scored(settings)]
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.01, high + 0.01)


def key_of_setting(setting: Setting) -> str:
    """What identifies a setting among those of a sweep."""
    return json.dumps(setting)


def setting_colours(settings: Sequence[SettingResult]) -> dict[str, str]:
    """A colour per setting, by `key_of_setting`: its own with few settings, otherwise that of its mean objective."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    keys = [key_of_setting(result.setting) for result in settings]
    if len(settings) <= MAX_COLOURED_SETTINGS:
        return {key: to_hex(colormaps["tab10"](rank)) for rank, key in enumerate(keys)}
    low, high = objective_range(settings)
    shares = [(result.value - low) / (high - low) if result.each else 0.0 for result in settings]
    return {key: to_hex(colormaps[COLOURS](share)) for key, share in zip(keys, shares, strict=True)}


@dataclass(frozen=True)
class Scale:
    """Where the values of an option lie on an axis: listed ones at 0, 1, ..., those of a range at themselves.

    Those of a logarithmic range lie at their logarithm of base 10. Listed numbers are in ascending order.
    """

    title: str
    values: list[Any]
    range: Range | None

    @classmethod
    def of(cls, name: str, domain: Domain) -> Scale:
        """The scale of an option with its dotted name."""
        title = option_title(name)
        if isinstance(domain, Range):
            return cls(f"{title} (logarithmic)" if domain.log else title, [], domain)
        numbers = all(isinstance(value, int | float) for value in domain)
        return cls(title, sorted(domain) if numbers else list(domain), None)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the axis; a listed value has as much room below it as above it."""
        if self.range is None:
            return -0.5, len(self.values) - 0.5
        return self.at(self.range.low), self.at(self.range.high)

    def at(self, value: Any) -> float:
        """The position of a value."""
        if self.range is None:
            return float(self.values.index(value))
        return math.log10(value) if self.range.log else float(value)

    def ticks(self) -> tuple[list[float], list[str]]:
        """Positions and texts: of all listed values; of the ends of a range and of some values between them."""
        if self.range is None:
            return [float(place) for place in range(len(self.values))], [value_text(value) for value in self.values]
        low, high = self.ends
        places = np.linspace(low, high, 5).tolist()
        if self.range.log and high - low > 1.2:
            # Powers of ten, but for those so close to an end that the texts would overlap.
            near = 0.12 * (high - low)
            powers = [float(n) for n in range(math.ceil(low), math.floor(high) + 1) if low + near < n < high - near]
            places = [low, *powers[:: max(len(powers) // 4, 1)], high]
        values = [10**place if self.range.log else place for place in places]
        if self.range.is_whole:
            values = sorted({round(value) for value in values})
        return [self.at(value) for value in values], [
            f"{value:.{6 if self.range.is_whole else 3}g}" for value in values
        ]

    def beside(self, values: Sequence[Any]) -> list[float]:
        """The positions of the values of settings; those of settings with the same listed value side by side."""
        places = [self.at(value) for value in values]
        if self.range is not None:
            return places
        counts, seen, moved = Counter(places), Counter[float](), []
        for place in places:
            seen[place] += 1
            moved.append(place + 0.5 * (seen[place] / (counts[place] + 1) - 0.5))
        return moved


def option_means(name: str, scale: Scale, results: Sequence[SettingResult]) -> tuple[list[float], list[float]]:
    """The positions of the listed values of an option, and the mean over the settings with each; none for a range."""
    by_place: dict[float, list[float]] = {}
    for result in results if scale.range is None else ():
        by_place.setdefault(scale.at(result.setting[name]), []).append(result.value)
    return sorted(by_place), [float(np.mean(by_place[place])) for place in sorted(by_place)]


@dataclass(frozen=True)
class ParallelAxis:
    """An axis of the parallel coordinates: the position of each setting with a result, and the ends of the axis."""

    title: str
    places: list[float]
    ends: tuple[float, float]
    ticks: tuple[list[float], list[str]]


def parallel_axes(settings: Sequence[SettingResult], options: Mapping[str, Domain]) -> list[ParallelAxis]:
    """The axes of the searched options and of the objective."""
    results, axes = scored(settings), []
    for name, domain in options.items():
        scale = Scale.of(name, domain)
        places = [scale.at(result.setting[name]) for result in results]
        axes.append(ParallelAxis(option_title(name), places, scale.ends, scale.ticks()))
    ends = objective_range(settings)
    ticks = np.linspace(*ends, 5).tolist()
    values = [result.value for result in results]
    return [*axes, ParallelAxis("objective", values, ends, (ticks, [f"{tick:.3f}" for tick in ticks]))]


@dataclass(frozen=True)
class Cell:
    """The settings that share the two values of a cell of the heat map, best first."""

    settings: list[SettingResult]
    is_best: bool

    @property
    def mean(self) -> float:
        """The mean of the settings that did not fail; NaN if all did."""
        values = [result.value for result in scored(self.settings)]
        return float(np.mean(values)) if values else float("nan")

    @property
    def is_tied(self) -> bool:
        """Whether it has a setting that cannot be told apart from the best, but not the best itself."""
        return not self.is_best and any(result.is_tied for result in self.settings)

    def lines(self) -> list[str]:
        """The mean; half of the interval, or the range of several settings; which were stopped early or failed."""
        results, lines = scored(self.settings), []
        if results:
            low, high = min(r.value for r in results), max(r.value for r in results)
            half = f"±{(results[0].high - results[0].low) / 2:.3f}"
            lines += [f"{self.mean:.3f}", f"{low:.3f}..{high:.3f}" if len(results) > 1 else half]
        for state, word in ((STOPPED, "stopped"), (FAILED, "failed")):
            if count := sum(result.state == state for result in self.settings):
                lines.append(word if count == len(self.settings) else f"{count} of {len(self.settings)} {word}")
        if count := sum(len(result.reasons) for result in results):
            lines.append(f"{count} trial{'s' * (count > 1)} failed")
        return lines


@dataclass(frozen=True)
class HeatMap:
    """The objective over two listed options: the cells that have settings, by their row and column."""

    rows: Scale
    columns: Scale
    cells: dict[tuple[int, int], Cell]

    def means(self) -> np.ndarray:
        """The means, (rows, columns); NaN where there is no result."""
        means = np.full((len(self.rows.values), len(self.columns.values)), np.nan)
        for place, cell in self.cells.items():
            means[place] = cell.mean
        return means

    def note(self) -> str:
        """What the texts and frames of the cells mean."""
        several = any(len(cell.settings) > 1 for cell in self.cells.values())
        notes = ["mean of the settings, lowest and highest" if several else "mean and half of its 95 % interval"]
        if any(cell.is_best for cell in self.cells.values()):
            notes.append("red frame: best setting")
        if any(cell.is_tied for cell in self.cells.values()):
            notes.append("dashed: setting that cannot be told apart from it")
        return "; ".join(notes)


def heat_map_of(settings: Sequence[SettingResult], space: Mapping[str, Domain]) -> HeatMap | None:
    """The heat map over mask ratio and set size if both were searched, otherwise over the first two listed options."""
    lists = [name for name, domain in searched(space).items() if not isinstance(domain, Range)]
    names = _HEAT_MAP_OPTIONS if set(_HEAT_MAP_OPTIONS) <= set(lists) else lists[:2]
    if len(names) < 2:
        return None
    rows, columns = (Scale.of(name, space[name]) for name in names)
    by_cell: dict[tuple[int, int], list[SettingResult]] = {}
    for result in settings:
        place = int(rows.at(result.setting[names[0]])), int(columns.at(result.setting[names[1]]))
        by_cell.setdefault(place, []).append(result)
    best = [result for result in settings[:1] if result.state == FINISHED]
    return HeatMap(rows, columns, {place: Cell(cell, cell[:1] == best) for place, cell in by_cell.items()})


def allows_importance(settings: Sequence[SettingResult], space: Mapping[str, Domain]) -> bool:
    """Whether `option_importance` has enough to compute from."""
    values = [result.value for result in finished(settings)]
    return len(searched(space)) > 1 and len(values) >= _MIN_FOR_IMPORTANCE and len(set(values)) > 1


def option_importance(settings: Sequence[SettingResult], space: Mapping[str, Domain]) -> dict[str, float]:
    """How much of the objective's variance each searched option explains by itself, in [0, 1], largest first.

    Computed by fANOVA over the finished settings, relative to the sum over the options. Empty with fewer than 2
    searched options, with fewer than 4 finished settings, or if all of these have the same objective.
    """
    if not allows_importance(settings, space):
        return {}
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    scales = {name: Scale.of(name, domain) for name, domain in searched(space).items()}
    # Of positions, because fANOVA takes a number as uniform in its distribution: each listed value counts as much as
    # the others, and so does each order of magnitude of a logarithmic range.
    distributions: dict[str, BaseDistribution] = {}
    for name, scale in scales.items():
        is_text = any(isinstance(value, str) for value in scale.values)
        choices = [scale.at(value) for value in scale.values]
        distributions[name] = CategoricalDistribution(choices) if is_text else FloatDistribution(*scale.ends)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        for result in finished(settings):
            params = {name: scale.at(result.setting[name]) for name, scale in scales.items()}
            trial = optuna.trial.create_trial(params=params, distributions=distributions, value=result.value)
            study.add_trial(trial)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)


def importance_title(settings: Sequence[SettingResult]) -> str:
    """The title of the axis of the importance."""
    return f"importance: fraction of the explained variance (fANOVA, {len(finished(settings))} finished settings)"


@dataclass(frozen=True)
class Progress:
    """How a sweep went: its trials in the order in which they ended, and what is known after each of them.

    `compute` is the sum of the trials' times so far, in `unit`. `best` is the best mean so far of the finished
    settings whose trials have all ended; NaN before the first.
    """

    trials: list[TrialResult]
    compute: list[float]
    unit: str
    best: list[float]


def progress_of(settings: Sequence[SettingResult], trials: Sequence[TrialResult]) -> Progress:
    """The progress of a sweep that has at least one trial."""
    ordered = sorted(trials, key=lambda trial: trial.began_s + trial.seconds)
    compute_s = np.cumsum([trial.seconds for trial in ordered])
    unit, unit_s = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if s == 1 or compute_s[-1] >= 2 * s)
    means = {key_of_setting(result.setting): result.value for result in finished(settings)}
    left = Counter(key_of_setting(trial.setting) for trial in ordered)
    best, best_so_far = float("nan"), []
    for trial in ordered:
        key = key_of_setting(trial.setting)
        left[key] -= 1
        if left[key] == 0 and key in means:
            best = float(np.fmax(best, means[key]))
        best_so_far.append(best)
    return Progress(ordered, (compute_s / unit_s).tolist(), unit, best_so_far)
