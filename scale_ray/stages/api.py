"""The stages as functions of keywords: what `scale_ray` offers to Python, and the stub for editors.

    sr.pretrain("features", run="first", mask_ratio=0.25)

A keyword is a parameter of the stage or one of its options by name; both are checked in one place with the command
line and YAML files (`config.StageConfig`).

`python -m scale_ray.stages.api` prints the stub `scale_ray/__init__.pyi`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Any

from scale_ray import CLASSES, STAGES
from scale_ray.config import Options, StageConfig, nearest, option_types
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.files.failures import explained


def stage_function(name: str) -> Callable[..., Any]:
    """The stage of this name with its options as keywords, and `quiet` and `verbose` instead of a console."""
    stage = _stage(name)
    config_type, own = _config_of(stage), _own_parameters(stage)
    known = [*own, "config", "quiet", "verbose", *config_type.option_sections()]

    @functools.wraps(stage)
    def called(
        *arguments: Any, config: StageConfig | None = None, quiet: bool = False, verbose: bool = False, **keywords: Any
    ) -> Any:
        for keyword in keywords:
            if keyword not in known:
                raise UserError(f"{name}: unknown keyword {keyword!r}, expected {nearest(keyword, known)}")
        parameters = {keyword: _text(keywords.pop(keyword)) for keyword in list(keywords) if keyword in own}
        if config_type is not StageConfig:
            options = {keyword: _path_text(value) for keyword, value in keywords.items()}
            parameters["config"] = (config or config_type()).replaced(**options)
        with explained():
            return stage(*map(_text, arguments), **parameters, console=Console(quiet=quiet, verbose=verbose))

    called.__doc__ = f"{inspect.cleandoc(stage.__doc__ or '')}\n\nOptions\n-------\n{_options_text(config_type)}"
    called.__signature__ = _signature(stage, config_type)  # type: ignore[attr-defined]
    return called


def stub() -> str:
    """The text of `scale_ray/__init__.pyi`: every name with its parameters and options."""
    functions, imports = [], {"from scale_ray.config import StageConfig"}
    for name in STAGES:
        stage = _stage(name)
        result = _hints(stage)["return"]
        imports.add(f"from {result.__module__} import {result.__name__}")
        first = inspect.cleandoc(stage.__doc__ or "").split("\n\n")[0]
        parameters = "".join(f"    {line},\n" for line in _stub_parameters(stage))
        doc = textwrap.indent(f'"""{first}"""', "    ")
        functions.append(f"def {name}(\n{parameters}) -> {result.__name__}:\n{doc}\n")
    classes = [f"from {module} import {name} as {name}" for name, module in CLASSES.items()]
    return "\n".join(
        [
            "# Printed by `python -m scale_ray.stages.api`; a test keeps it current.",
            "from collections.abc import Sequence",
            "from os import PathLike",
            "",
            *sorted([*classes, *imports]),
            "",
            "__version__: str",
            "STAGES: dict[str, str]",
            "CLASSES: dict[str, str]",
            "",
            *functions,
        ]
    )


def _stage(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(STAGES[name]), name)


def _hints(stage: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(stage)


def _config_of(stage: Callable[..., Any]) -> type[StageConfig]:
    return _hints(stage).get("config", StageConfig)


def _own_parameters(stage: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a stage beside its options."""
    parameters = inspect.signature(stage).parameters
    return {name: value for name, value in parameters.items() if name not in ("config", "console")}


def _path_text(value: Any) -> Any:
    """A path, or a result that stands for one, as text; any other value as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _text(value: Any) -> Any:
    """The value of a stage's own parameter: paths as text, a list of checkpoints separated by commas."""
    return ",".join(map(_path_text, value)) if isinstance(value, list | tuple) else _path_text(value)


def _fields(config_type: type[StageConfig]) -> Iterator[tuple[type[Options], dataclasses.Field[Any]]]:
    for section in config_type.sections().values():
        for field in dataclasses.fields(section):  # type: ignore[arg-type]
            yield section, field


def _defaults(config_type: type[StageConfig]) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Every option with its default: of a sweep the values that it tries, if there are several."""
    for section, field in _fields(config_type):
        yield field, config_type.searchable().get(f"{section.section}.{field.name}") or field.default


def _options_text(config_type: type[StageConfig]) -> str:
    lines = []
    for field, default in _defaults(config_type):
        unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
        lines.append(f"{field.name} = {default!r}{unit}\n    {field.metadata['help']}")
    return "\n".join(lines)


def _signature(stage: Callable[..., Any], config_type: type[StageConfig]) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = list(_own_parameters(stage).values())
    parameters += [
        inspect.Parameter("config", keyword, default=None),
        inspect.Parameter("quiet", keyword, default=False),
        inspect.Parameter("verbose", keyword, default=False),
        *(inspect.Parameter(field.name, keyword, default=default) for field, default in _defaults(config_type)),
    ]
    return inspect.Signature(parameters)


def _stub_parameters(stage: Callable[..., Any]) -> Iterator[str]:
    """The lines of a function's parameters in the stub."""
    hints, config_type, is_keyword = _hints(stage), _config_of(stage), False
    for name, parameter in _own_parameters(stage).items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not is_keyword:
            is_keyword = True
            yield "*"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        yield f"{name}: {_own_type(name, hints[name])}{default}"
    if not is_keyword:
        yield "*"
    if config_type is not StageConfig:
        yield "config: StageConfig | None = None"
    yield "quiet: bool = False"
    yield "verbose: bool = False"
    searchable = config_type.searchable()
    for section, field in _fields(config_type):
        tried = searchable.get(f"{section.section}.{field.name}")
        plain = option_types(section)[field.name].plain
        several = "" if tried is None else f" | Sequence[{plain.__name__}]" + " | Range" * (plain is not str)
        yield f"{field.name}: {_option_type(section, field.name)}{several} = {tried or field.default!r}"


def _own_type(name: str, hint: Any) -> str:
    """The type of a stage's own parameter: paths may be given as objects, checkpoints also as a list."""
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    if name in ("run", "query") or "str" not in text:
        return text
    paths = "str | PathLike[str]"
    if name == "checkpoint":
        paths += " | Sequence[str | PathLike[str]]"
    return text.replace("str", paths)


def _option_type(section: type[Options], name: str) -> str:
    plain, optional, item = option_types(section)[name]
    text = f"{item.__name__} | Sequence[{item.__name__}]" if plain is tuple else plain.__name__
    return text + " | None" * optional


if __name__ == "__main__":
    print(stub(), end="")
