"""The results of a sweep as one HTML page with interactive figures, which needs no other file and no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from scale_ray.config import Domain
from scale_ray.console import printable, shortened
from scale_ray.reports.sweep_data import (
    COLOURS,
    MAX_COLOURED_SETTINGS,
    HeatMap,
    Scale,
    heat_map_of,
    importance_title,
    interval_text,
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
    state_text,
    value_text,
)
from scale_ray.search import FAILED, FINISHED, STOPPED, Setting, SettingResult, TrialResult

# Plotly's figures as plain dictionaries: a trace and a layout.
_Trace = dict[str, Any]
_Layout = dict[str, Any]
_Figure = tuple[list[_Trace], _Layout]

_SYMBOLS = {FINISHED: ("circle", "#1f77b4"), STOPPED: ("triangle-down", "#ff7f0e"), FAILED: ("x", "#d62728")}
_DASHES = {FINISHED: "solid", STOPPED: "dash", FAILED: "dot"}
_MAX_TEXT = 100
_PANELS_IN_A_ROW, _PANEL_HEIGHT_PX = 3, 340

# The browser itself refuses every request of the page. Plotly compiles code to draw parallel coordinates.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; base-uri 'none'"
)
# Without the button that sends the data of a figure to Plotly's server; a text with dollar signs is no formula.
_CONFIG = {"showSendToCloud": False, "displaylogo": False, "typesetMath": False, "responsive": True}
_STYLE = """
body { font-family: sans-serif; max-width: 1200px; margin: 1.5em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-size: 14px; }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; max-width: 18em; overflow-wrap: break-word; }
th { background: #f2f2f2; }
.table { overflow-x: auto; }
"""


def sweep_page(
    settings: Sequence[SettingResult], trials: Sequence[TrialResult], space: Mapping[str, Domain], title: str
) -> bytes:
    """The page: an HTML file with the table of the settings and, if any has a result, the interactive figures.

    `settings` are ranked, `trials` are all trials, `space` holds what was tried by dotted option name.
    """
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    parts = [f"<h1>{_html(title)}</h1>", f"<p>Objective: {_html(objective_title(trials))}</p>", _table(settings, space)]
    figures = list(_figures(settings, trials, space)) if scored(settings) else []
    for number, (heading, (traces, layout)) in enumerate(figures):
        common = {"template": "plotly_white", "margin": {"t": 30, "r": 30}, "height": 480, "hovermode": "closest"}
        figure: dict[str, Any] = {"data": traces, "layout": common | layout}
        # A copy, because `to_html` changes it.
        body = to_html(figure, dict(_CONFIG), include_plotlyjs=False, full_html=False, div_id=f"figure{number}")
        parts += [f"<h2>{_html(heading)}</h2>", body]
    script = f"<script>{get_plotlyjs()}</script>" if figures else ""
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_html(title)}</title>
<style>{_STYLE}</style>
{script}
</head>
<body>
{body}
</body>
</html>
""".encode()


def _html(text: str) -> str:
    return escape(printable(text))


def _label(text: str, most: int = _MAX_TEXT) -> str:
    """A text for a figure: Plotly reads some tags and these three entities, and shows quotes as they are."""
    return escape(shortened(text, most), quote=False)


def _table(settings: Sequence[SettingResult], space: Mapping[str, Domain]) -> str:
    options = list(map(option_title, space))
    heads = ["rank", *options, "mean", "95 % interval", "trials by seed", "state", "tied with the best"]
    rows = [heads]
    for rank, result in enumerate(settings, 1):
        values = [value_text(result.setting[name], _MAX_TEXT) for name in space]
        mean, interval = (f"{result.value:.3f}", interval_text(result)) if result.each else ("-", "-")
        rows.append(
            [
                str(rank),
                *values,
                mean,
                interval,
                _each(result) or "-",
                state_text(result),
                "yes" if result.is_tied else "no",
            ]
        )
    [head, *body] = [[_html(text) for text in row] for row in rows]
    lines = [f"<tr><th>{'</th><th>'.join(head)}</th></tr>"]
    lines += [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body]
    return "\n".join(['<h2>Settings, best first</h2>\n<div class="table"><table>', *lines, "</table></div>"])


def _each(result: SettingResult) -> str:
    return ", ".join(f"{seed}: {value:.3f}" for seed, value in result.each.items())


def _figures(
    settings: Sequence[SettingResult], trials: Sequence[TrialResult], space: Mapping[str, Domain]
) -> Iterator[tuple[str, _Figure]]:
    """The headings and figures that the results allow."""
    title, options = _label(objective_title(trials)), searched(space)
    if (heat_map := heat_map_of(settings, space)) is not None:
        yield f"Two options: {heat_map.note()}", _heat_map(heat_map, title)
    if options:
        yield (
            "Each option: a point per setting with its 95 % interval; pale: stopped early",
            _options(settings, options, title),
        )
    if len(options) > 1:
        yield "All options: drag along an axis to choose settings", _parallel(settings, options, title)
    if importance := option_importance(settings, space):
        yield "Importance of the options", _importance(importance, importance_title(settings))
    yield "Progress", _progress(settings, trials, title)
    if any(len(trial.curve) > 1 for trial in trials):
        yield "Objective by epoch: a line per trial; dashed: stopped early", _curves(settings, trials, title)


def _hover(result: SettingResult) -> str:
    """A setting with its result, in lines."""
    found = [f"mean {result.value:.3f} ({interval_text(result)})", f"trials {_each(result)}"] if result.each else []
    return "<br>".join([*_setting_lines(result.setting), *found, _label(state_text(result))])


def _setting_lines(setting: Setting, most: int = _MAX_TEXT) -> list[str]:
    return [escape(part, quote=False) for part in setting_parts(setting, most)]


def _axis(scale: Scale) -> _Layout:
    places, texts = scale.ticks()
    margin = 0.04 * (scale.ends[1] - scale.ends[0]) if scale.range else 0.0
    ends = [scale.ends[0] - margin, scale.ends[1] + margin]
    title = {"text": _label(scale.title)}
    return {"tickvals": places, "ticktext": list(map(_label, texts)), "range": ends, "title": title, "zeroline": False}


def _scatter(mode: str, x: Sequence[Any], y: Sequence[Any], hover: Sequence[str], **more: Any) -> _Trace:
    return {"type": "scatter", "mode": mode, "x": x, "y": y, "hovertext": hover, "hoverinfo": "text"} | more


def _bar(title: str) -> _Layout:
    return {"title": {"text": title, "side": "right"}}


def _heat_map(heat_map: HeatMap, title: str) -> _Figure:
    means = heat_map.means()
    texts, hovers = np.full(means.shape, "", object), np.full(means.shape, "", object)
    frames = []
    for (row, column), cell in heat_map.cells.items():
        texts[row, column] = "<br>".join(cell.lines())
        hovers[row, column] = "<br><br>".join(map(_hover, cell.settings[:4])) + "<br>…" * (len(cell.settings) > 4)
        if cell.is_best or cell.is_tied:
            line = {"color": "red", "width": 3, "dash": "solid" if cell.is_best else "dash"}
            corners = {"x0": column - 0.47, "x1": column + 0.47, "y0": row - 0.47, "y1": row + 0.47}
            frames.append({"type": "rect", "line": line, **corners})
    cells = {"type": "heatmap", "z": means, "text": texts, "texttemplate": "%{text}", "colorscale": COLOURS}
    cells |= {"hovertext": hovers, "hoverinfo": "text", "colorbar": _bar(title)}
    columns, rows = (_axis(scale) | {"showgrid": False} for scale in (heat_map.columns, heat_map.rows))
    rows |= {"range": rows["range"][::-1], "automargin": True, "ticks": "outside"}
    layout = {"shapes": frames, "xaxis": columns | {"automargin": True}, "yaxis": rows, "showlegend": False}
    return [cells], layout | {"height": max(110 * len(means) + 120, 400)}


def _options(settings: Sequence[SettingResult], options: Mapping[str, Domain], title: str) -> _Figure:
    num_rows = -(-len(options) // _PANELS_IN_A_ROW)
    grid = {"rows": num_rows, "columns": min(len(options), _PANELS_IN_A_ROW), "pattern": "independent", "ygap": 0.4}
    traces: list[_Trace] = []
    layout: _Layout = {"grid": grid, "showlegend": False, "height": num_rows * _PANEL_HEIGHT_PX + 60}
    results = scored(settings)
    values, (below, above) = [result.value for result in results], spread(results)
    bars = {"type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 0, "color": "#9bbfdc"}
    marker = {"color": "#1f77b4", "opacity": [0.9 if result.state == FINISHED else 0.35 for result in results]}
    for number, (name, domain) in enumerate(options.items(), 1):
        scale = Scale.of(name, domain)
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        places = scale.beside([result.setting[name] for result in results])
        points = _scatter("markers", places, values, list(map(_hover, results)), marker=marker, error_y=bars, **axes)
        listed, means = option_means(name, scale, results)
        hovers = [f"mean of the settings with this value: {mean:.3f}" for mean in means]
        line = {"color": "black", "width": 1}
        traces += [points, _scatter("lines+markers", listed, means, hovers, line=line, **axes)]
        layout |= {f"xaxis{number}": _axis(scale), f"yaxis{number}": {"zeroline": False}}
        if number > 1:
            layout[f"yaxis{number}"]["matches"] = "y"
        if number % _PANELS_IN_A_ROW == 1 or _PANELS_IN_A_ROW == 1:
            layout[f"yaxis{number}"]["title"] = {"text": title, "font": {"size": 11}}
    return traces, layout


def _parallel(settings: Sequence[SettingResult], options: Mapping[str, Domain], title: str) -> _Figure:
    axes = [
        {"label": _label(axis.title), "values": axis.places, "range": axis.ends}
        | {"tickvals": axis.ticks[0], "ticktext": axis.ticks[1]}  # plain text, unlike elsewhere
        for axis in parallel_axes(settings, options)
    ]
    low, high = objective_range(settings)
    line = {"color": [result.value for result in scored(settings)], "colorscale": COLOURS, "cmin": low, "cmax": high}
    lines = {"type": "parcoords", "dimensions": axes, "line": line | {"showscale": True, "colorbar": _bar(title)}}
    return [lines | {"labelangle": -15, "labelfont": {"size": 12}}], {"margin": {"t": 100, "l": 110, "r": 30, "b": 30}}


def _importance(importance: Mapping[str, float], title: str) -> _Figure:
    names, values = [_label(option_title(name)) for name in importance], list(importance.values())
    bars: _Trace = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": names,
        "hoverinfo": "skip",
        "textposition": "outside",
    }
    bars |= {"text": [f"{value:.2f}" for value in values], "marker": {"color": "#1f77b4"}}
    rows = {"autorange": "reversed", "automargin": True, "type": "category", "ticksuffix": " "}
    layout = {"xaxis": {"title": {"text": title}, "range": [0, 1.1]}, "yaxis": rows}
    return [bars], layout | {"height": 40 * len(importance) + 130}


def _progress(settings: Sequence[SettingResult], trials: Sequence[TrialResult], title: str) -> _Figure:
    progress = progress_of(settings, trials)
    scores = [trial.value for trial in progress.trials if trial.state != FAILED]
    floor = min(scores) - 0.08 * (max(scores) - min(scores) or 0.1)  # where failed trials are, which have no objective
    traces: list[_Trace] = []
    numbers = [float(number) for number in range(1, len(trials) + 1)]
    right = {"xaxis": "x2", "yaxis": "y2", "showlegend": False}
    for places, axes in ((numbers, {}), (progress.compute, right)):
        for state, (symbol, colour) in _SYMBOLS.items():
            rows = [row for row, trial in enumerate(progress.trials) if trial.state == state]
            values = [floor if state == FAILED else progress.trials[row].value for row in rows]
            hovers = [_trial_hover(progress.trials[row]) for row in rows]
            more = {"marker": {"symbol": symbol, "color": colour, "opacity": 0.7}, "legendgroup": state, **axes}
            if rows:
                x = [places[row] for row in rows]
                traces.append(_scatter("markers", x, values, hovers, name=f"trial, {state}", **more))
        more = {"line": {"shape": "hv", "color": "black"}, "legendgroup": "best", "hoverinfo": "skip", **axes}
        traces.append(_scatter("lines", places, progress.best, []) | {"name": "best mean of a setting so far"} | more)
    texts = ("trials, in the order in which they ended", f"compute: sum of the trials' times [{progress.unit}]")
    layout: _Layout = {
        f"xaxis{number}": {"title": {"text": text}, "zeroline": False} for number, text in enumerate(texts, 1)
    }
    layout |= {"yaxis": {"title": {"text": title}}, "yaxis2": {"matches": "y"}}
    layout |= {"grid": {"rows": 1, "columns": 2, "pattern": "independent"}, "legend": {"orientation": "h", "y": -0.2}}
    return traces, layout


def _trial_hover(trial: TrialResult) -> str:
    """A trial with its result, in lines."""
    lines = [f"seed {trial.seed}: {trial.state} after {trial.epochs} epochs, {trial.seconds:.0f} s"]
    lines += [f"objective {trial.value:.3f}"] if trial.state != FAILED else []
    lines += [_label(trial.reason)] if trial.reason else []
    return "<br>".join([*_setting_lines(trial.setting), *lines])


def _curves(settings: Sequence[SettingResult], trials: Sequence[TrialResult], title: str) -> _Figure:
    colours = setting_colours(settings)
    few = len(settings) <= MAX_COLOURED_SETTINGS
    traces: list[_Trace] = []
    for rank, result in enumerate(settings, 1):
        name = "<br>".join(_setting_lines(result.setting, 30))
        of_setting = [trial for trial in trials if trial.setting == result.setting and trial.curve]
        for number, trial in enumerate(of_setting):
            epochs, values = zip(*trial.curve, strict=True)
            line = {"color": colours[key_of_setting(trial.setting)], "width": 1.3, "dash": _DASHES[trial.state]}
            more = {"line": line, "legendgroup": rank, "showlegend": few and number == 0, "name": f"{rank}: {name}"}
            mode = "lines" if len(epochs) > 1 else "markers"
            traces.append(_scatter(mode, epochs, values, f"rank {rank}<br>{_trial_hover(trial)}", **more))
    if not few:
        low, high = objective_range(settings)
        marker = {"color": [low], "cmin": low, "cmax": high, "colorscale": COLOURS, "showscale": True}
        marker |= {"colorbar": _bar("mean of the setting at the end")}
        traces.append(_scatter("markers", [None], [None], [], marker=marker, showlegend=False))
    return traces, {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": title}}}
