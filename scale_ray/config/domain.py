"""What a search may try for one option: listed values, or all numbers of a range.

0.15,0.25,0.5        these values
0.1..0.9             a number of the range, each as likely
log:1e-4..1e-2       a number of the range, each order of magnitude as likely
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scale_ray.errors import UserError

_LOG = "log:"
_DOTS = ".."
# So many values of a range are checked.
_PROBED = 32
# Up to here a float is exact for every whole number.
_MAX_WHOLE = 2**53


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; with `log`, uniform in their logarithm. Whole if both ends are."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (self.low, self.high))
        limit = _MAX_WHOLE if self.is_whole else math.inf
        if not numbers or not -limit < self.low < self.high < limit or (self.log and self.low <= 0):
            above = " above 0" if self.log else ""
            raise UserError(f"expected a range of numbers{above} in ascending order, found {self}")

    def __str__(self) -> str:
        return f"{_LOG * self.log}{self.low}{_DOTS}{self.high}"

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def value_at(self, share: float) -> int | float:
        """The number below which a fraction `share` in [0, 1) of the range lies."""
        # A whole number stands for the range from itself to the next one, so that both ends are as likely as the rest.
        low, high = (self.low, self.high + 1) if self.is_whole else (self.low, self.high)
        value = low ** (1 - share) * high**share if self.log else low + (high - low) * share
        return min(max(math.floor(value) if self.is_whole else value, self.low), self.high)


Domain = tuple[Any, ...] | Range


def uniform(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, each as likely; whole numbers if both are."""
    return Range(low, high)


def log_uniform(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, each order of magnitude as likely; whole numbers if both are."""
    return Range(low, high, log=True)


def as_domain(name: str, value: Any, read: Callable[[Any], Any]) -> Domain:
    """The domain that a list, an array, a range or their text stands for; of one value a tuple of one.

    `read` converts and checks one value of the option `name`.

    Raises
    ------
    UserError
        If a value is not one of the option, is not finite or occurs twice, or if the range is none.
    """
    if hasattr(value, "tolist"):  # an array, such as of `numpy.geomspace`
        value = value.tolist()
    if isinstance(value, str):
        value = _from_text(name, value)
    if isinstance(value, Range):
        return _checked_range(name, value, read)
    values = tuple(map(read, value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)))
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise UserError(f"{name}: expected finite numbers to try, found {_listed(values)}")
    if not values or len(set(values)) < len(values):
        raise UserError(f"{name}: expected different values to try, found {_listed(values) or 'none'}")
    return values


def _checked_range(name: str, value: Range, read: Callable[[Any], Any]) -> Range:
    try:
        found = replace(value, low=read(value.low), high=read(value.high))
    except UserError as error:
        raise error if str(error).startswith(name) else UserError(f"{name}: {error}") from None
    for number in range(_PROBED):
        try:
            read(found.value_at((number + 0.5) / _PROBED))
        except UserError as error:  # such as a width that has to be a multiple of 32
            raise UserError(f"{error}, in the range {value}; list the values instead") from None
    return found


def domain_text(domain: Domain) -> str:
    """The domain as it is written on the command line."""
    return str(domain) if isinstance(domain, Range) else _listed(domain)


def _from_text(name: str, text: str) -> Any:
    if _DOTS not in text:
        return tuple(part.strip() for part in text.split(",")) if "," in text else text
    low, _, high = text.removeprefix(_LOG).partition(_DOTS)
    try:
        if high.startswith("."):  # three dots: `1e-4...1e-2` would end at 0.001
            raise ValueError(text)
        return Range(_number(low), _number(high), text.startswith(_LOG))
    except (ValueError, UserError):
        raise UserError(
            f"{name}: expected LOW{_DOTS}HIGH or {_LOG}LOW{_DOTS}HIGH in ascending order, with LOW above 0 after "
            f"{_LOG}, found {text!r}"
        ) from None


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _listed(values: tuple[Any, ...]) -> str:
    return ",".join(map(str, values))


def lowest_and_highest(domain: Domain) -> tuple[Any, ...]:
    """The values of a list, or the ends of a range: what a check has to look at."""
    return (domain.low, domain.high) if isinstance(domain, Range) else domain


def setting_name(setting: Mapping[str, Any]) -> str:
    """A setting in words, without its sections: `mask_ratio 0.25, set_size 8`."""
    return ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in setting.items()) or "the options"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
