"""Click options generated from `scale_ray.config`, and what every command has in common."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import yaml

from scale_ray.cli.submission import LOCATION, Location, check_locations, submission_address, submitted
from scale_ray.config import SECTIONS, Options, StageConfig, flag_of, option_types
from scale_ray.console import RESULT_FOLLOWS, Console, Result, show
from scale_ray.errors import UserError, first_line, redacted
from scale_ray.files.locations import absolute

if TYPE_CHECKING:  # it brings PyAV, which most commands do without
    from scale_ray.extraction import ExtractionSummary

Command = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Caller:
    """How the results of a command are printed, and whether it runs as a cluster job.

    `marked` is for a job that a command elsewhere follows: the log joins both outputs, and a line divides them.
    """

    console: Console
    json: bool
    job: bool
    marked: bool = False

    def print_result(self, result: Result) -> None:
        """Print a result on standard output."""
        if self.marked:
            show(RESULT_FOLLOWS)
        if self.json:
            # Everything but ASCII is escaped; of its control characters JSON leaves this one.
            text = json.dumps(redacted(result.values()), indent=2, default=str)
            show(text.replace("\x7f", "\\u007f"))
        elif not self.console.quiet:
            show(str(result))

    def code_of(self, summaries: Sequence[ExtractionSummary], allowed_fraction: float) -> int:
        """The exit code of an extraction: a job fails by the fraction of failed videos, a command reports any."""
        if self.job:
            return 1 if max(summary.failed_fraction for summary in summaries) > allowed_fraction else 0
        if all(summary.num_done + summary.num_changed == 0 for summary in summaries):
            return 1
        return 3 if any(summary.failures or summary.changed for summary in summaries) else 0


def command(stage: type[StageConfig] | None = None, *, as_job: bool = True) -> Callable[[Command], Command]:
    """Give a command the options of a stage, and those that all commands have.

    The function is called with a `Caller`, its own click parameters and, if it has a stage, its `config`. With the
    address of a job server, `http://HEAD:8265`, the command is sent to that cluster instead, if it can be a job.
    """
    sections, searchable = ({}, {}) if stage is None else (stage.sections(), stage.searchable())

    def decorate(function: Command) -> Command:
        @click.pass_context
        @functools.wraps(function)
        def called(context: click.Context, /, **values: Any) -> Any:
            console = Console(quiet=values.pop("quiet"), verbose=values.pop("verbose"))
            job, marked = ((context.obj or {}).get(name, False) for name in ("job", "marked"))
            caller = Caller(console, values.pop("json_"), job, marked)
            address = submission_address(values, runs_on_ray="cluster" in sections)
            for name in ("config_file", "debug", "help_all", "address", "send_modules"):
                values.pop(name, None)
            if stage is not None:
                values["config"] = stage.from_dict({name: _taken(name, values) for name in sections})
            if job or address is not None:
                check_locations(context)
            if address is not None:
                return submitted(context, address, console)
            return function(caller, **values)

        for name, section in reversed(sections.items()):
            for field in reversed(dataclasses.fields(section)):  # type: ignore[arg-type]
                called = _click_option(name, section, field, searchable.get(f"{name}.{field.name}"))(called)
        if as_job and "cluster" not in sections:
            called = click.option(
                "--address", metavar="URL", help="Run as a job on the Ray cluster at http://HEAD:8265, instead of here."
            )(called)
        if as_job and "source" in sections:
            called = click.option(
                "--send-modules",
                type=ValueList(str),
                hidden=True,
                help="Modules here, separated by commas, that a job needs for the aggregator's backbone.",
            )(called)
        for common in reversed(_common(sections, searchable)):
            called = common(called)
        return called

    return decorate


def store_option(function: Command) -> Command:
    return click.option(
        "--store",
        required=True,
        type=LOCATION,
        metavar="DIR",
        envvar="SCALE_RAY_STORE",
        help="The feature store: a folder or URI.",
    )(function)


def checkpoint_option(function: Command) -> Command:
    return click.option(
        "--checkpoint", required=True, metavar="RUN", help="A run's name or folder, or an aggregator's folder."
    )(function)


def runs_option(function: Command) -> Command:
    return click.option(
        "--runs",
        default="runs",
        type=LOCATION,
        show_default=True,
        metavar="DIR",
        envvar="SCALE_RAY_RUNS",
        help="Folder of all runs and of MLflow's database.",
    )(function)


def run_option(default: str | None = None) -> Callable[[Command], Command]:
    return click.option(
        "--run", required=default is None, default=default, show_default=True, metavar="NAME", help="Name of the run."
    )


class ValueList(click.ParamType):  # type: ignore[type-arg]
    """Numbers or names separated by commas."""

    name = "LIST"

    def __init__(self, plain: type) -> None:
        self.plain = plain

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(self.plain(part.strip()) for part in value.split(",") if value)
        except ValueError:
            self.fail(f"expected {self.plain.__name__}s separated by commas, found {value!r}", param, context)


class SearchedValue(click.ParamType):  # type: ignore[type-arg]
    """A value, several separated by commas, or a range; read by `SweepConfig`."""

    def __init__(self, plain: type) -> None:
        self.name = "texts" if plain is str else f"{plain.__name__}s"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        return value


def _click_option(
    name: str, section: type[Options], field: dataclasses.Field[Any], tried: tuple[Any, ...] | None
) -> Callable[[Command], Command]:
    """The click option of a field; `tried` are the default values of a search, None if it cannot be searched."""
    plain, _, item = option_types(section)[field.name]
    unit, default = field.metadata["unit"], tried or field.default
    if plain is bool:
        keywords: dict[str, Any] = {"is_flag": True}
        shown = ""
    else:
        kind: Any = SearchedValue(plain) if tried is not None else ValueList(item) if plain is tuple else plain
        if field.metadata["is_location"]:
            kind = Location(("default", "none")) if name in ("backbone", "source") else LOCATION
        keywords = {"type": kind}
        text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        shown = "" if default is None else "  [" + " ".join(filter(None, [text, unit])) + "]"
    return click.option(
        flag_of(field.name),
        f"{name}__{field.name}",
        default=default,
        hidden=not field.metadata["main"],
        envvar=f"SCALE_RAY_{field.name.upper()}",
        help=field.metadata["help"] + shown,
        **keywords,
    )


def _taken(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a section's options by name, taken out of `values`."""
    prefix = f"{section}__"
    return {name.removeprefix(prefix): values.pop(name) for name in list(values) if name.startswith(prefix)}


def _common(sections: Mapping[str, type[Options]], searchable: Collection[str]) -> list[Callable[[Command], Command]]:
    def read_config(context: click.Context, _: click.Parameter, path: str | None) -> None:
        if path is not None:
            context.default_map = _defaults_from(path, sections, searchable)

    def show_all(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            for parameter in context.command.params:
                if isinstance(parameter, click.Option):
                    parameter.hidden = False
            show(context.get_help())
            context.exit()

    hidden_options = any(
        not field.metadata["main"]
        for section in sections.values()
        for field in dataclasses.fields(section)  # type: ignore[arg-type]
    )
    common: list[Callable[[Command], Command]] = [
        click.option(
            "--config",
            "config_file",
            metavar="FILE",
            is_eager=True,
            expose_value=True,
            callback=read_config,
            help="YAML file with options by section; flags override it.",
        ),
        click.option("--json", "json_", is_flag=True, help="Print the result as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Also print what the libraries log."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error.", hidden=True),
    ]
    if hidden_options:
        common.append(
            click.option(
                "--help-all", is_flag=True, is_eager=True, callback=show_all, help="Show every option and exit."
            )
        )
    return common


def _defaults_from(path: str, sections: Mapping[str, type[Options]], searchable: Collection[str]) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise UserError(f"--config: expected a YAML file, found none at {absolute(path)}")
    with open(path, encoding="utf-8") as file:
        try:
            written = yaml.safe_load(file) or {}
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as an invalid date, or another encoding
            raise UserError(f"--config: expected YAML, found in {path}: {first_line(error)}") from error
    if not isinstance(written, dict):
        raise UserError(f"--config: expected sections of options in {path}, found {type(written).__name__}")
    known = {**SECTIONS, **sections}
    defaults: dict[str, Any] = {}
    for name, values in written.items():
        if name not in known or not isinstance(values, dict):
            raise UserError(f"--config: expected sections named {', '.join(known)}, found {name!r} in {path}")
        # What may be a list or a range is checked with the rest of the stage's options; click 8.2 drops None.
        known[name].from_dict(
            {key: value for key, value in values.items() if value is None or f"{name}.{key}" not in searchable}
        )
        if name in sections:
            defaults |= {f"{name}__{key}": value for key, value in values.items()}
    return defaults
