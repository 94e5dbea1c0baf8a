"""The figures of a sweep as PNG files: what each searched option does to the objective, and how the search went."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from scale_ray.config import Domain
from scale_ray.reports.figures import drawn
from scale_ray.reports.sweep_data import (
    COLOURS,
    MAX_COLOURED_SETTINGS,
    HeatMap,
    Scale,
    allows_importance,
    finished,
    heat_map_of,
    importance_title,
    key_of_setting,
    objective_range,
    objective_title,
    option_importance,
    option_means,
    option_title,
    parallel_axes,
    progress_of,
    scored,
    searched,
    setting_colours,
    setting_parts,
    spread,
)
from scale_ray.search import FAILED, FINISHED, STOPPED, SettingResult, TrialResult

_MARKERS = {FINISHED: ("o", "tab:blue"), STOPPED: ("v", "tab:orange"), FAILED: ("x", "tab:red")}
_LINES = {FINISHED: "-", STOPPED: "--", FAILED: ":"}
_MAX_NAME = 60


def sweep_figures(
    settings: Sequence[SettingResult], trials: Sequence[TrialResult], space: Mapping[str, Domain]
) -> dict[str, Callable[[], bytes]]:
    """The figures that the results allow: the names of the PNG files, and the functions that draw them.

    `settings` are ranked, `trials` are all trials, `space` holds what was tried by dotted option name. Empty if no
    trial has a result.
    """
    if not scored(settings):
        return {}
    title, options = objective_title(trials), searched(space)
    figures: dict[str, Callable[[], bytes]] = {}
    if (heat_map := heat_map_of(settings, space)) is not None:
        figures["heatmap.png"] = partial(_heat_map_figure, heat_map, title)
    if options:
        figures["options.png"] = partial(_options_figure, settings, options, title)
    if len(options) > 1:
        figures["parallel.png"] = partial(_parallel_figure, settings, options, title)
    if allows_importance(settings, space):
        figures["importance.png"] = partial(_importance_figure, settings, space)
    figures["progress.png"] = partial(_progress_figure, settings, trials, title)
    if any(len(trial.curve) > 1 for trial in trials):
        figures["curves.png"] = partial(_curves_figure, settings, trials, title)
    return figures


def _heat_map_figure(heat_map: HeatMap, title: str) -> bytes:
    from matplotlib.patches import Rectangle

    means = heat_map.means()
    width_in = max(1.15 * means.shape[1] + 2.6, 5.5)
    with drawn(width_in, max(0.72 * len(means) + 2.2, 3.6)) as (figure, picture):
        axes = figure.subplots()
        image: Any = axes.imshow(means, cmap=COLOURS, aspect="auto")
        figure.colorbar(image, ax=axes, label=title)
        for (row, column), cell in heat_map.cells.items():
            hatched = not finished(cell.settings)
            if hatched:
                square = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(square, 1, 1, fill=False, hatch="//", edgecolor="silver", linewidth=0))
            colour = "black" if np.isnan(cell.mean) or image.norm(cell.mean) > 0.6 else "white"
            box = {"facecolor": image.to_rgba(cell.mean), "edgecolor": "none", "pad": 1.5} if hatched else None
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "linespacing": 1.25}
            axes.text(column, row, "\n".join(cell.lines()), color=colour, bbox=box, **style)
            if cell.is_best or cell.is_tied:
                frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="red", linewidth=2.5)
                frame.set_linestyle("-" if cell.is_best else (0, (3, 2)))
                axes.add_patch(frame)
        _label_ticks(axes, heat_map.columns)
        axes.set_yticks(*heat_map.rows.ticks(), fontsize=8)
        axes.set_ylabel(heat_map.rows.title)
        figure.suptitle(_wrapped(heat_map.note(), int(width_in * 13)), fontsize=9)
    return picture.png


def _options_figure(settings: Sequence[SettingResult], options: Mapping[str, Domain], title: str) -> bytes:
    num_columns = min(len(options), 4)
    num_rows = math.ceil(len(options) / num_columns)
    with drawn(max(3.1 * num_columns + 0.6, 5.5), 3.1 * num_rows + 0.6) as (figure, picture):
        panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).ravel().tolist()
        for axes, (name, domain) in zip(panels, options.items(), strict=False):
            _option_panel(axes, name, Scale.of(name, domain), scored(settings))
        for axes in panels[len(options) :]:
            axes.set_axis_off()
        handles: dict[str, Any] = {}
        for axes in panels:
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=8)
        figure.supylabel(title, fontsize=10)
    return picture.png


def _option_panel(axes: Any, name: str, scale: Scale, results: Sequence[SettingResult]) -> None:
    places = np.array(scale.beside([result.setting[name] for result in results]))
    for state, alpha in ((FINISHED, 0.9), (STOPPED, 0.3)):
        rows = [row for row, result in enumerate(results) if result.state == state]
        if rows:
            of_state = [results[row] for row in rows]
            values, label = [result.value for result in of_state], f"{state}, with 95 % interval"
            style: dict[str, Any] = {"fmt": "o", "ms": 4, "elinewidth": 0.8, "color": "tab:blue", "alpha": alpha}
            axes.errorbar(places[rows], values, yerr=spread(of_state), label=label, **style)
    listed, means = option_means(name, scale, results)
    if listed:
        axes.plot(listed, means, color="black", marker="_", ms=14, lw=1, label="mean of the settings with this value")
    _label_ticks(axes, scale)
    margin = 0.04 * (scale.ends[1] - scale.ends[0]) if scale.range else 0.0
    axes.set_xlim(scale.ends[0] - margin, scale.ends[1] + margin)
    axes.tick_params(labelleft=True)
    axes.grid(axis="y", alpha=0.3)


def _parallel_figure(settings: Sequence[SettingResult], options: Mapping[str, Domain], title: str) -> bytes:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours: Any = ScalarMappable(Normalize(*objective_range(settings)), COLOURS)
    columns = parallel_axes(settings, options)
    with drawn(max(1.3 * len(columns) + 1.5, 6), 5) as (figure, picture):
        axes = figure.subplots()
        heights = [np.interp(column.places, column.ends, (0, 1)) for column in columns]
        for row, result in reversed(list(enumerate(scored(settings)))):  # the best on top
            alpha = 1.0 if result.state == FINISHED else 0.5
            style: dict[str, Any] = {
                "color": colours.to_rgba(result.value),
                "linestyle": _LINES[result.state],
                "alpha": alpha,
            }
            axes.plot([height[row] for height in heights], **style)
        for number, column in enumerate(columns):
            axes.axvline(number, color="grey", lw=0.8, zorder=0)
            for height, text in zip(np.interp(column.ticks[0], column.ends, (0, 1)), column.ticks[1], strict=True):
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
                axes.text(number, height, text, ha="center", va="center", fontsize=7, bbox=box, zorder=3)
        names = [column.title for column in columns]
        axes.set_xticks(range(len(names)), names, rotation=20 if max(map(len, names)) > 11 else 0, fontsize=9)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.4, len(names) - 0.6)
        figure.colorbar(colours, ax=axes, label=title, pad=0.01, aspect=30)
        dashed = "; dashed: stopped early" * any(result.state == STOPPED for result in settings)
        axes.set_title(f"a line per setting{dashed}", fontsize=10)
    return picture.png


def _importance_figure(settings: Sequence[SettingResult], space: Mapping[str, Domain]) -> bytes:
    importance = option_importance(settings, space)
    with drawn(7, 0.34 * len(importance) + 1.3) as (figure, picture):
        axes = figure.subplots()
        bars = axes.barh(list(map(option_title, importance)), list(importance.values()))
        axes.bar_label(bars, [f"{value:.2f}" for value in importance.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.1)
        axes.set_xlabel(importance_title(settings))
    return picture.png


def _progress_figure(settings: Sequence[SettingResult], trials: Sequence[TrialResult], title: str) -> bytes:
    progress = progress_of(settings, trials)
    numbers = [float(number) for number in range(1, len(trials) + 1)]
    with drawn(11, 4.2) as (figure, picture):
        panels = figure.subplots(1, 2, sharey=True)
        for axes, places in zip(panels, (numbers, progress.compute), strict=True):
            for state, (marker, colour) in _MARKERS.items():
                rows = [row for row, trial in enumerate(progress.trials) if trial.state == state]
                # A failed trial has no objective: it is at the lower edge.
                values = [0.03 if state == FAILED else progress.trials[row].value for row in rows]
                style: dict[str, Any] = {"transform": axes.get_xaxis_transform()} if state == FAILED else {}
                style |= {"marker": marker, "color": colour, "s": 18, "alpha": 0.7}
                if rows:
                    axes.scatter([places[row] for row in rows], values, label=f"trial, {state}", **style)
            if not np.isnan(progress.best[-1]):
                axes.step(places, progress.best, where="post", color="black", label="best mean of a setting so far")
            axes.grid(alpha=0.3)
        panels[0].set_xlabel("trials, in the order in which they ended")
        panels[1].set_xlabel(f"compute: sum of the trials' times [{progress.unit}]")
        panels[0].set_ylabel(title)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return picture.png


def _curves_figure(settings: Sequence[SettingResult], trials: Sequence[TrialResult], title: str) -> bytes:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    colours = setting_colours(settings)
    few = len(settings) <= MAX_COLOURED_SETTINGS
    with drawn(11 if few else 9, 4.8) as (figure, picture):
        axes = figure.subplots()
        drawn_trials = [trial for trial in trials if trial.curve]
        for trial in drawn_trials:
            epochs, values = zip(*trial.curve, strict=True)
            colour, marker = colours[key_of_setting(trial.setting)], "." if len(epochs) == 1 else None
            axes.plot(epochs, values, _LINES[trial.state], color=colour, marker=marker, lw=1.1, alpha=0.8)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if few:
            for rank, result in enumerate(settings, 1):
                label = _wrapped(f"{rank}: {', '.join(setting_parts(result.setting))}", _MAX_NAME)
                axes.plot([], [], color=colours[key_of_setting(result.setting)], label=label)
        else:
            mapped = ScalarMappable(Normalize(*objective_range(settings)), COLOURS)
            figure.colorbar(mapped, ax=axes, label="mean of the setting at the end")
        for state in (STOPPED, FAILED):
            if any(trial.state == state for trial in drawn_trials):
                axes.plot([], [], _LINES[state], color="black", label=f"trial, {state}")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper" if few else "outside lower center", fontsize=8)
    return picture.png


def _label_ticks(axes: Any, scale: Scale) -> None:
    """Name the axis below, and its values; long texts are turned so that they do not overlap."""
    places, texts = scale.ticks()
    axes.set_xlabel(scale.title)
    axes.set_xticks(places, texts, fontsize=8)
    if len(texts) * max(map(len, texts)) > 24:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" …"))
