"""Click options generated from `config.py`, and what every command has in common."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import yaml

from scale_ray.config import SECTIONS
from scale_ray.config.option import Options, flag_of, option_types
from scale_ray.errors import UserError
from scale_ray.locations import absolute, is_uri

Command = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Caller:
    """How the user wants to be spoken to, and whether the command runs as a cluster job."""

    json: bool
    quiet: bool
    verbose: bool
    job: bool

    def say(self, line: str) -> None:
        """A remark on the way, on standard error."""
        if not self.quiet:
            click.echo(line, err=True)

    def answer(self, lines: Sequence[str], values: Mapping[str, Any]) -> None:
        """The result, on standard output."""
        if self.json:
            click.echo(json.dumps(values, indent=2, default=str))
        elif not self.quiet:
            click.echo("\n".join(lines))

    def place(self, flag: str, location: str) -> str:
        """A location as given; in a job, whose own folder vanishes, only one that stays."""
        if self.job and not is_uri(location) and not os.path.isabs(location):
            raise UserError(f"{flag}: expected an absolute path or a URI in a job, found {location!r}")
        return location


def command(*sections: type[Options]) -> Callable[[Command], Command]:
    """Give a command the options of these sections, and the common ones.

    The function is called with a `Caller`, its own click parameters and one object a section, named as
    the section is.
    """

    def decorate(function: Command) -> Command:
        @click.pass_context
        @functools.wraps(function)
        def called(context: click.Context, /, **values: Any) -> Any:
            caller = Caller(
                values.pop("json_"), values.pop("quiet"), values.pop("verbose"), bool((context.obj or {}).get("job"))
            )
            for name in ("config_file", "debug", "help_all"):
                values.pop(name, None)
            given = {section.section: _section_of(section, values) for section in sections}
            return function(caller, **values, **given)

        for section in reversed(sections):
            for field in reversed(dataclasses.fields(section)):  # type: ignore[arg-type]
                called = _click_option(section, field)(called)
        for common in reversed(_common(sections)):
            called = common(called)
        return called

    return decorate


def store_option(function: Command) -> Command:
    return click.option(
        "--store", required=True, metavar="DIR", envvar="SCALE_RAY_STORE", help="The feature store: a folder or URI."
    )(function)


def checkpoint_option(function: Command) -> Command:
    return click.option(
        "--checkpoint", required=True, metavar="RUN", help="A run's name or folder, or an aggregator's folder."
    )(function)


def runs_option(function: Command) -> Command:
    return click.option(
        "--runs",
        default="runs",
        show_default=True,
        metavar="DIR",
        envvar="SCALE_RAY_RUNS",
        help="Folder of all runs and of MLflow's data base.",
    )(function)


def run_option(default: str | None = None) -> Callable[[Command], Command]:
    return click.option(
        "--run", required=default is None, default=default, show_default=True, metavar="NAME", help="Name of the run."
    )


class ValueList(click.ParamType):
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


def sweep_options(section: type[Options]) -> Callable[[Command], Command]:
    """Every option of the section as a list of values to try."""

    def decorate(function: Command) -> Command:
        for field in reversed(dataclasses.fields(section)):  # type: ignore[arg-type]
            tried = field.metadata["sweep"]
            function = click.option(
                flag_of(field.name),
                f"grid__{field.name}",
                type=ValueList(option_types(section)[field.name].plain),
                default=",".join(map(str, tried)),
                show_default=True,
                help=f"{field.metadata['help']} The values to try.",
            )(function)
        return function

    return decorate


def _click_option(section: type[Options], field: dataclasses.Field) -> Callable[[Command], Command]:
    plain, _, item = option_types(section)[field.name]
    unit, default = field.metadata["unit"], field.default
    if plain is bool:
        keywords: dict[str, Any] = {"is_flag": True}
        shown = ""
    else:
        keywords = {"type": ValueList(item) if plain is tuple else plain}
        told = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        shown = "" if default is None else "  [" + " ".join(filter(None, [told, unit])) + "]"
    return click.option(
        flag_of(field.name),
        f"{section.section}__{field.name}",
        default=default,
        hidden=not field.metadata["main"],
        envvar=f"SCALE_RAY_{field.name.upper()}",
        help=field.metadata["help"] + shown,
        **keywords,
    )


def _section_of(section: type[Options], values: dict[str, Any]) -> Options:
    prefix = f"{section.section}__"
    mine = [name for name in values if name.startswith(prefix)]
    return section.from_dict({name.removeprefix(prefix): values.pop(name) for name in mine})


def _common(sections: Sequence[type[Options]]) -> list[Callable[[Command], Command]]:
    def read_config(context: click.Context, _: click.Parameter, path: str | None) -> None:
        if path is not None:
            context.default_map = _defaults_from(path, sections)

    def show_all(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            for parameter in context.command.params:
                if isinstance(parameter, click.Option):
                    parameter.hidden = False
            click.echo(context.get_help())
            context.exit()

    hidden_options = any(
        not field.metadata["main"]
        for section in sections
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
            help="YAML file with options by section; flags go on top.",
        ),
        click.option("--json", "json_", is_flag=True, help="Print the result as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Print what the libraries log, too."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error.", hidden=True),
    ]
    if hidden_options:
        common.append(
            click.option(
                "--help-all", is_flag=True, is_eager=True, callback=show_all, help="Show every option and exit."
            )
        )
    return common


def _defaults_from(path: str, sections: Sequence[type[Options]]) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise UserError(f"--config: expected a YAML file, found none at {absolute(path)}")
    with open(path, encoding="utf-8") as file:
        try:
            written = yaml.safe_load(file) or {}
        except yaml.YAMLError as error:
            raise UserError(f"--config: expected YAML, found in {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(written, dict):
        raise UserError(f"--config: expected sections of options in {path}, found {type(written).__name__}")
    defaults: dict[str, Any] = {}
    for name, values in written.items():
        if name not in SECTIONS or not isinstance(values, dict):
            raise UserError(f"--config: expected sections named {', '.join(SECTIONS)}, found {name!r} in {path}")
        SECTIONS[name].from_dict(values)
        if SECTIONS[name] in sections:
            defaults |= {f"{name}__{key}": value for key, value in values.items()}
    return defaults
