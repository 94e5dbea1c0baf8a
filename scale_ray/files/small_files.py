"""Small files of JSON and YAML that this package writes: read here, so that damage to any is one clear line.

Such a file holds a mapping. What a reader needs of it is a table of names and types: `{"format": int, "fingerprint":
dict[str, Any], "made_with": dict | None}`. A missing value counts as None, and other names are ignored.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from scale_ray.errors import UserError, first_line
from scale_ray.files.locations import read_bytes

Types = Mapping[str, Any]


def read_json(location: str, kind: str, types_: Types) -> dict[str, Any]:
    """The mapping in a JSON file; `kind` names the file in messages, such as `the header of a feature store`.

    Raises
    ------
    UserError
        If the file cannot be read, is not JSON, or holds something else than the expected types.
    """
    return parsed_json(content_of(location, kind), location, kind, types_)


def read_yaml(location: str, kind: str, types_: Types) -> dict[str, Any]:
    """The mapping in a YAML file, as `read_json` reads one."""
    return _parsed(yaml.safe_load, content_of(location, kind), location, kind, types_)


def parsed_json(content: bytes, location: str, kind: str, types_: Types) -> dict[str, Any]:
    """As `read_json`, for a file that has been read already; `location` is only for messages."""
    return _parsed(json.loads, content, location, kind, types_)


def content_of(location: str, kind: str) -> bytes:
    """The bytes of a small file.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    try:
        return read_bytes(location)
    except OSError as error:
        raise UserError(f"{location}: expected {kind}, found no readable file ({first_line(error)})") from error


def check_types(values: Mapping[str, Any], location: str, kind: str, types_: Types) -> None:
    """Check that each named value has its type.

    Raises
    ------
    UserError
        If one has not: the message names it.
    """
    for name, type_ in types_.items():
        if not _fits(values.get(name), type_):
            expected = type_.__name__ if type(type_) is type else str(type_)
            raise UserError(
                f"{location}: expected {kind} with {name} of type {expected}, "
                f"found {_shortened(values.get(name)) if name in values else 'none'}"
            )


def _parsed(parse: Callable[[bytes], Any], content: bytes, location: str, kind: str, types_: Types) -> dict[str, Any]:
    try:
        values = parse(content)
    except Exception as error:  # arbitrary bytes can make the parsers raise exceptions of many types
        raise UserError(f"{location}: expected {kind}, found a damaged file ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise UserError(f"{location}: expected {kind}, found a damaged file (not a mapping but {_shortened(values)})")
    check_types(values, location, kind, types_)
    return values


def _fits(value: Any, type_: Any) -> bool:
    if type_ is Any:
        return True
    if isinstance(type_, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(type_))
    if typing.get_origin(type_) is dict:
        key, inner = typing.get_args(type_)
        return isinstance(value, dict) and all(_fits(k, key) and _fits(v, inner) for k, v in value.items())
    if typing.get_origin(type_) is list:
        [inner] = typing.get_args(type_)
        return isinstance(value, list) and all(_fits(one, inner) for one in value)
    if isinstance(value, bool):  # Python counts it as an integer
        return type_ is bool
    return isinstance(value, type_)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
