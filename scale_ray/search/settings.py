"""The settings of a search: a grid of listed values, or random draws that depend on their number and a seed alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from scale_ray.config import Domain, Range, SweepConfig, lowest_and_highest, read_value
from scale_ray.hashing import digest, uniform_hash

# A value per searched option, by its dotted name.
Setting = dict[str, Any]

# So many draws in a row that give no new setting mean that few are left: these follow in order.
_MAX_REPEATED = 1000


def grid_settings(space: Mapping[str, Domain]) -> Iterator[Setting]:
    """All combinations of the listed values, the last option changing fastest."""
    for values in itertools.product(*space.values()):  # type: ignore[arg-type]  # no ranges in a grid
        yield dict(zip(space, values, strict=True))


def random_settings(space: Mapping[str, Domain], seed: int) -> Iterator[Setting]:
    """Different settings, drawn at random; they end when a space of few settings has been drawn completely."""
    drawn: set[str] = set()
    repeated = 0
    for number in itertools.count():
        setting = {name: _drawn(domain, f"{seed}\0{number}\0{name}") for name, domain in space.items()}
        text = json.dumps(setting)
        repeated = repeated + 1 if text in drawn else 0
        if repeated == _MAX_REPEATED:
            break
        if text not in drawn:
            drawn.add(text)
            yield setting
    rest = grid_settings({name: _all_values(domain) for name, domain in space.items()})
    yield from (setting for setting in rest if json.dumps(setting) not in drawn)


def _all_values(domain: Domain) -> tuple[Any, ...]:
    if isinstance(domain, Range):
        # Draws from a range of fractions repeat only if it is so narrow that it holds but a few.
        return tuple(range(int(domain.low), int(domain.high) + 1)) if domain.is_whole else lowest_and_highest(domain)
    return domain


def _drawn(domain: Domain, key: str) -> Any:
    share = uniform_hash(f"setting\0{key}")
    return domain.value_at(share) if isinstance(domain, Range) else domain[int(share * len(domain))]


def key_of(config: SweepConfig, setting: Mapping[str, Any], seed: int) -> str:
    """What identifies a trial in the files of a sweep, whichever of its options are searched.

    A grid that has grown, also by an option, finds the trials that it had before.
    """
    values, sections = config.nested(), config.sections()
    options = {}
    for dotted in config.searchable():
        section, _, name = dotted.partition(".")
        # Converted, so that 2 and 2.0 are the same, and an option that is searched must be in the setting.
        options[dotted] = read_value(sections[section], name, setting.get(dotted, values[section][name]))
    return digest(json.dumps([options, seed], sort_keys=True))
