"""What an option is: a dataclass field with a default, a help text, a unit and a check."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from scale_ray.errors import UserError


@dataclass(frozen=True)
class Check:
    """A condition on an option's value, with the words for a message; with `per_part` on each part of a list."""

    expected: str
    holds: Callable[[Any], bool]
    per_part: bool = False

    def refuse(self, name: str, value: Any) -> None:
        """Raise a UserError if the value, or a part of it, does not meet the condition."""
        for part in value if self.per_part else (value,):
            if not self.holds(part):
                raise UserError(f"{name}: expected a value {self.expected}, found {part!r}")


def at_least(low: float) -> Check:
    return Check(f"at least {low:g}", lambda value: value >= low)


def above(low: float) -> Check:
    return Check(f"above {low:g}", lambda value: value > low)


def fraction(*, with_one: bool) -> Check:
    if with_one:
        return Check("in [0, 1]", lambda value: 0 <= value <= 1)
    return Check("in [0, 1)", lambda value: 0 <= value < 1)


def one_of(*choices: str) -> Check:
    return Check("one of " + ", ".join(choices), lambda value: value in choices)


def each(check: Check) -> Check:
    """The check for every part of a list."""
    return dataclasses.replace(check, per_part=True)


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    check: Check | None = None,
    main: bool = False,
    searched: bool = False,
    tried: tuple[Any, ...] = (),
    is_location: bool = False,
) -> Any:
    """A dataclass field that is an option.

    `unit` follows the default in the help text, and only `main` options are in the short help. A sweep can search
    `searched` options; `tried` are the values that it tries by default. An option that `is_location` names files that
    another machine must find at the same place.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "check": check,
        "main": main,
        "searched": searched,
        "tried": tried,
        "is_location": is_location,
    }
    return dataclasses.field(default=default, metadata=metadata)


_Section = TypeVar("_Section", bound="Options")


class Options:
    """Base of the sections: checks every value, and converts from and to plain dictionaries."""

    section: typing.ClassVar[str]

    def __post_init__(self) -> None:
        types_ = option_types(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            value = _coerced(field.name, value, types_[field.name])
            object.__setattr__(self, field.name, value)
            check: Check | None = field.metadata["check"]
            if value == () and field.default:
                raise UserError(f"{field.name}: expected at least one value, found none")
            if check is not None and value is not None:
                check.refuse(field.name, value)

    @classmethod
    def from_dict(cls: type[_Section], values: Mapping[str, Any]) -> _Section:
        """The section with these options; the others have their defaults.

        Raises
        ------
        UserError
            For an unknown option, a value of the wrong type or one outside its range.
        """
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                raise UserError(f"{cls.section}.{name}: unknown option, expected {nearest(name, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()  # type: ignore[call-overload]
        }


class OptionType(typing.NamedTuple):
    """The type of an option: `plain`, `tuple` for a list of `item`s, and whether it may be None."""

    plain: type
    optional: bool
    item: type


def option_types(section: type[Options]) -> dict[str, OptionType]:
    """The type of every option of a section."""
    found: dict[str, OptionType] = {}
    for name, hint in typing.get_type_hints(section).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        optional = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
        plain = next(arg for arg in typing.get_args(hint) if arg is not type(None)) if optional else hint
        item = typing.get_args(plain)[0] if typing.get_args(plain) else plain
        found[name] = OptionType(typing.get_origin(plain) or plain, optional, item)
    return found


def _coerced(name: str, value: Any, type_: OptionType) -> Any:
    plain, optional, item = type_
    if value is None and optional:
        return None
    if plain is tuple:
        several = value if isinstance(value, list | tuple) else (value,)  # `knn_k: 20` in a YAML file
        return tuple(_coerced(name, inner, OptionType(item, False, item)) for inner in several)
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):  # of a whole number of more than 308 digits
            return float(value)
    if plain is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # `workers: 2` in a YAML file
    if isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{name}: expected a value of type {plain.__name__}, found {value!r}")


# Options that have got another name: the old one is refused with a hint.
RENAMED = {"arithmetic": "train_precision", "validation_share": "folds"}


def nearest(name: str, known: Sequence[str]) -> str:
    """For a message: the known names most like an unknown one, its new name, or all of them if none is like it."""
    if RENAMED.get(name) in known:
        return f"its new name {RENAMED[name]}"
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return "one of " + ", ".join(close or known)


def read_value(section: type[Options], name: str, value: Any) -> Any:
    """One value of an option, converted from text if necessary, and checked by itself.

    Raises
    ------
    UserError
        If it is of another type or outside the option's range.
    """
    type_, check = option_types(section)[name], section.__dataclass_fields__[name].metadata["check"]  # type: ignore[attr-defined]
    if isinstance(value, str) and type_.plain in (int, float):
        with suppress(ValueError):
            value = type_.plain(value)
    value = _coerced(name, value, type_)
    if check is not None and value is not None:
        check.refuse(name, value)
    return value


def flag_of(name: str) -> str:
    """The command-line flag of an option: `mask_ratio` is `--mask-ratio`."""
    return "--" + name.replace("_", "-")
