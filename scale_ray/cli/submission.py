"""A command that is sent to a cluster as a job: its arguments, and what may be among them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.files.locations import is_uri, options_of, showable

# Of the command here, not of the job.
_NOT_SENT = ("address", "cluster__address", "cluster__cpus", "config_file", "send_modules")
_SECRET_OPTION = re.compile(r"[?&](\w*(key|secret|token|password|credential)\w*)=", re.IGNORECASE)


class Location(click.ParamType):  # type: ignore[type-arg]
    """A folder, a file or a URI; with `several` or `words`, which are no locations, several separated by commas."""

    name = "location"

    def __init__(self, words: Sequence[str] = (), *, several: bool = False) -> None:
        self.words, self.several = words, several or bool(words)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        return value

    def relative(self, value: str) -> str | None:
        """The first relative path in a value, if there is one."""
        parts = [part.strip() for part in value.split(",")] if self.several else [value]
        places = (part for part in parts if part not in self.words)
        return next((place for place in places if not is_uri(place) and not os.path.isabs(place)), None)


LOCATION = Location()


def submission_address(values: Mapping[str, Any], *, runs_on_ray: bool) -> str | None:
    """The job server to which a command with these values is to be sent; None if it is to run here.

    For a command that runs on Ray, RAY_ADDRESS may name it, too.

    Raises
    ------
    UserError
        If the address given to another command is none of a job server.
    """
    if runs_on_ray:
        address = values.get("cluster__address") or os.environ.get("RAY_ADDRESS")
        return address if address and _is_job_server(address) else None
    address = values.get("address")
    if address and not _is_job_server(address):
        raise UserError(f"address: expected http://HEAD:8265, for a command that needs no Ray, found {address!r}")
    return address


def _is_job_server(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def check_locations(context: click.Context) -> None:
    """Check the locations of a command that is a job: the working folder of a job vanishes with it.

    Raises
    ------
    UserError
        If one of them is a relative path.
    """
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if isinstance(parameter.type, Location) and isinstance(value, str):
            place = parameter.type.relative(value)
            if place is not None:
                raise UserError(f"{_called(parameter)}: expected an absolute path or a URI in a job, found {place!r}")


def submitted(context: click.Context, address: str, console: Console) -> int:
    """Run the command as a job of a cluster, follow its log and return its exit code.

    Raises
    ------
    UserError
        If the cluster cannot take the job, or if an argument holds a secret: arguments of jobs are no secrets.
    """
    from scale_ray.distributed.job_client import run_job

    arguments = [str(context.info_name), *arguments_of(context)]
    for argument in arguments:
        if secret := _secret_in(argument):
            raise UserError(
                f"expected no {secret} in the arguments of a job, which everybody sees who sees its cluster; set it in "
                "the environment of the cluster's nodes"
            )
    return run_job(address, arguments, _modules(context), console)


def arguments_of(context: click.Context) -> list[str]:
    """The arguments that give every value that was set: in the command line, the environment or a configuration."""
    flags: list[str] = []
    positional: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in _NOT_SENT or context.get_parameter_source(name) in (None, ParameterSource.DEFAULT):
            continue
        value = context.params.get(name)
        if isinstance(parameter, click.Argument):
            positional += [value] if isinstance(value, str) else list(value or ())
        else:
            flags += _flag(parameter, value)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and context.get_parameter_source("tracking__tracking_uri") == ParameterSource.DEFAULT:
        flags += ["--tracking-uri", uri]
    return [*flags, *(["--", *positional] if positional else [])]


def _flag(parameter: click.Parameter, value: Any) -> Iterator[str]:
    flag = parameter.opts[-1]
    if value is None or value is False:
        return
    if value is True:
        yield flag
    elif getattr(parameter, "multiple", False):
        for single in value:
            yield from (flag, str(single))
    else:
        # With "=", a value may begin with a dash.
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield f"{flag}={text}" if flag.startswith("--") else text


def _secret_in(argument: str) -> str | None:
    """What is secret in an argument, in words."""
    _, separator, value = argument.partition("=")
    for text in (argument, value if separator and argument.startswith("--") else ""):
        if not is_uri(text):
            continue
        if found := _SECRET_OPTION.search(options_of(text)):
            return f"option {found[1]} of a URI"
        # What is shown of a URI has no user and no password.
        host, rest = showable(text).partition("://")[2].partition("/")[0], text.partition("://")[2]
        if not rest.startswith(host) or rest[len(host) : len(host) + 1] not in ("", "/", "?"):
            return "user or password in a URI"
    return None


def _modules(context: click.Context) -> list[str]:
    """The modules that the job needs from here: of custom backbones, by their names, and those that are named."""
    backbones = str(context.params.get("backbone__backbone") or "").split(",")
    custom = [name.partition(":")[0].strip() for name in backbones if ":" in name]
    return [name for name in [*custom, *(context.params.get("send_modules") or ())] if name != "hf"]


def _called(parameter: click.Parameter) -> str:
    return parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.human_readable_name
