"""A sweep in Markdown, for the description of its run in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scale_ray.config import Domain, domain_text
from scale_ray.console import shortened
from scale_ray.probes import in_markdown
from scale_ray.reports.sweep_data import (
    interval_text,
    objective_title,
    option_title,
    searched,
    setting_parts,
    state_text,
    value_text,
)
from scale_ray.search import SettingResult, TrialResult

# MLflow cuts a description after 8,000 characters, perhaps in the middle of a row.
MAX_CHARACTERS = 7500
_MAX_SETTINGS, _MAX_DOMAIN = 30, 200


def search_description(space: Mapping[str, Domain]) -> str:
    """What a sweep searches, a line per option: the description while it runs."""
    options = [f"- {in_markdown(option_title(name))}: {_domain(domain)}" for name, domain in searched(space).items()]
    return "\n".join(["Searched options:", "", *options] if options else ["No option has more than one value."])


def sweep_description(
    settings: Sequence[SettingResult], trials: Sequence[TrialResult], space: Mapping[str, Domain]
) -> str:
    """The best setting in a sentence, and a table of the settings, best first; at most `MAX_CHARACTERS` long.

    `settings` are ranked, and the first one has a result; `trials` are all trials, `space` holds what was tried by
    dotted option name.
    """
    best, num_tied = settings[0], sum(result.is_tied for result in settings[1:])
    title = objective_title(trials)
    names = list(space)
    cells = [*map(option_title, names), "mean", "95 % interval", "seeds", "epochs", "state"]
    lines = [
        f"**Best setting: {in_markdown(', '.join(setting_parts(best.setting)) or 'the given options')}**",
        "",
        f"{in_markdown(title)}: {best.value:.3f}, 95 % interval {interval_text(best)}. "
        + (f"Settings that cannot be told apart from it: {num_tied} (=)." if num_tied else "All others are worse."),
        "",
        _row(cells),
        "| --- " * len(cells) + "|",
    ]
    end = ["", "`sweep.html` among the artifacts has interactive figures, `best.yaml` the options of the best setting."]
    left = MAX_CHARACTERS - sum(len(line) + 1 for line in [*lines, *end]) - 100
    rows: list[str] = []
    for rank, result in enumerate(settings[:_MAX_SETTINGS]):
        row = _setting_row(result, names, is_best=rank == 0)
        left -= len(row) + 1
        if left < 0:
            break
        rows.append(row)
    hidden = len(settings) - len(rows)
    more = ["", f"{hidden} more settings are in `settings.csv` among the artifacts."] if hidden else []
    return "\n".join([*lines, *rows, *more, *end])


def _setting_row(result: SettingResult, names: Sequence[str], *, is_best: bool) -> str:
    mean, interval = (f"{result.value:.3f}", interval_text(result)) if result.each else ("-", "-")
    mark = "" if is_best or not result.is_tied else " (=)"
    values = [value_text(result.setting[name]) for name in names]
    return _row([*values, mean, interval, str(len(result.each)), str(result.epochs), state_text(result) + mark])


def _domain(domain: Domain) -> str:
    return in_markdown(shortened(domain_text(domain), _MAX_DOMAIN))


def _row(cells: Sequence[str]) -> str:
    # MLflow's page draws columns without any distance.
    return f"| {'&emsp; | '.join(map(in_markdown, cells))} |"
