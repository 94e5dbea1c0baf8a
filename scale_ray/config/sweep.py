"""Options of the search for settings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from scale_ray.config.domain import Domain, Range, as_domain, lowest_and_highest
from scale_ray.config.option import Check, Options, above, at_least, nearest, one_of, option, read_value
from scale_ray.config.pretraining import AggregatorOptions, Ingest, ObjectiveOptions, Sets, Splits, Training
from scale_ray.config.probing import Probing
from scale_ray.config.runtime import Cluster, Tracking
from scale_ray.config.stage import StageConfig
from scale_ray.errors import UserError


@dataclass(frozen=True)
class Searching(Options):
    """The sweep."""

    section = "searching"

    search: str = option(
        "auto",
        "grid: all combinations; random; optuna: model-based; auto: grid for lists, random with ranges.",
        check=one_of("auto", "grid", "random", "optuna"),
        main=True,
    )
    trials: int = option(20, "Settings that a random or model-based search tries.", check=at_least(1), main=True)
    hours: float = option(
        0.0, "Start no trial after this time; 0: no limit.", unit="hours", check=at_least(0), main=True
    )
    seeds: int = option(3, "Trials per setting, each with its own seed and fold.", check=at_least(1), main=True)
    folds: int = option(
        4,
        "Parts of the training split: a trial trains without one, and is ranked on it.",
        check=at_least(2),
        main=True,
    )
    rank_by: str = option(
        "auto",
        "knn or linear: top-1; halves: videos whose halves find each other; auto: knn with labels, else halves.",
        check=one_of("auto", "knn", "linear", "halves"),
        main=True,
    )
    early_stopping: str = option(
        "auto",
        "How trials that fall behind are stopped: asha, median or none; auto: asha unless it is a grid.",
        check=one_of("auto", "none", "asha", "median"),
        main=True,
    )
    grace_epochs: int = option(
        0, "Epochs before a trial may be stopped; 0: a tenth of them.", unit="epochs", check=at_least(0)
    )
    trials_at_once: int = option(
        0, "Maximum number of concurrent trials; 0: as many as the cluster has room for.", check=at_least(0)
    )
    trial_cpus: float = option(1.0, "CPUs of each worker of a trial.", check=above(0))
    trial_gpus: float = option(
        0.25,
        "GPUs of each worker of a trial, if the cluster has any: a fraction, or a whole number.",
        check=Check("above 0, and whole above 1", lambda value: 0 < value <= 1 or (value > 1 and value % 1 == 0)),
    )
    search_seed: int = option(0, "Seed of a random or model-based search.", check=at_least(0))
    promote: bool = option(
        False, "Train the best setting on the whole training split, probe it and register it.", main=True
    )
    promote_epochs: int = option(
        0, "Epochs of the promoted training; 0: those of the trials.", unit="epochs", check=at_least(0)
    )


# Options of the pretraining that a sweep cannot follow: its trials hold out folds, and are stopped by their scores.
_UNUSED = ("training.held_out_share", "training.patience", "training.pretrain_on")


def _default_space() -> dict[str, Domain]:
    return {f"{Sets.section}.{f.name}": f.metadata["tried"] for f in dataclasses.fields(Sets) if f.metadata["tried"]}


def _section(dotted: str) -> tuple[type[Options], str]:
    name, _, key = dotted.partition(".")
    return SweepConfig.sections()[name], key


def _default(dotted: str) -> Any:
    section, key = _section(dotted)
    return section.__dataclass_fields__[key].default  # type: ignore[attr-defined]


def _domain(dotted: str, value: Any) -> Domain:
    section, key = _section(dotted)
    return as_domain(key, value, partial(read_value, section, key))


def _representative(domain: Domain, default: Any) -> Any:
    """A value of the domain: the option's default if it is one of them."""
    if isinstance(domain, Range):
        return default if default is not None and domain.low <= default <= domain.high else domain.low
    return default if default in domain else domain[0]


def _extremes(domain: Domain) -> tuple[Any, ...]:
    """The smallest and the largest number: options limit each other only by these. Any other value stands for all."""
    values = lowest_and_highest(domain)
    numbers = [value for value in values if isinstance(value, int | float)]
    return (min(numbers), max(numbers)) if numbers else values[:1]


@dataclass(frozen=True, kw_only=True)
class SweepConfig(StageConfig):
    """The options of `sweep`: those of the pretraining, of which many may be lists or ranges, and those of the search.

    `space` holds what is tried for every searched option, by dotted name, such as `{"sets.mask_ratio": (0.15, 0.5)}`.
    """

    sets: Sets = Sets()
    aggregator: AggregatorOptions = AggregatorOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    training: Training = Training()
    ingest: Ingest = Ingest()
    splits: Splits = Splits()
    searching: Searching = Searching()
    probing: Probing = Probing()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()
    space: Mapping[str, Domain] = field(default_factory=_default_space)

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", self._checked_space())
        for name in _UNUSED:
            if (value := self._value(name)) != (default := _default(name)):
                key = name.partition(".")[2]
                raise UserError(f"{key}: expected {default!r} in a sweep, whose trials hold out folds, found {value!r}")
        self._check_search()
        self._check_combinations()

    def _checked_space(self) -> dict[str, Domain]:
        """The space in the order of the options, whoever made it; without what other options replace."""
        known = self.searchable()
        for dotted in self.space:
            if dotted not in known:
                raise UserError(f"{dotted}: expected an option that can be searched, {nearest(dotted, list(known))}")
        space = {dotted: _domain(dotted, self.space[dotted]) for dotted in known if dotted in self.space}
        # `SweepConfig(sets=Sets(mask_ratio=0.5))` fixes an option that is searched by default.
        if space == _default_space():
            space = {dotted: domain for dotted, domain in space.items() if self._value(dotted) == _default(dotted)}
        masked_clips = "sets.masked_clips" in space or self.sets.masked_clips is not None
        ratios = space.pop("sets.mask_ratio", None) if masked_clips else None
        if ratios not in (None, _default_space()["sets.mask_ratio"]):
            raise UserError("mask_ratio: expected a single value beside masked_clips, which replaces it")
        return space

    def _check_search(self) -> None:
        if self.searching.search == "grid":
            for dotted, domain in self.space.items():
                if isinstance(domain, Range):
                    key = dotted.partition(".")[2]
                    raise UserError(f"{key}: expected listed values for a grid, found the range {domain}")

    def _check_combinations(self) -> None:
        """Options of a section limit each other, such as `masked_clips` and `set_size`: no setting may be invalid."""
        for name in self.sections():
            section = getattr(self, name)
            domains = {d.partition(".")[2]: domain for d, domain in self.space.items() if d.startswith(f"{name}.")}
            for values in itertools.product(*map(_extremes, domains.values())):
                try:
                    dataclasses.replace(section, **dict(zip(domains, values, strict=True)))
                except UserError as error:
                    raise UserError(f"{error}, in one of the settings to try") from None

    def _value(self, dotted: str) -> Any:
        name, _, key = dotted.partition(".")
        return getattr(getattr(self, name), key)

    @classmethod
    def sections(cls) -> dict[str, type[Options]]:
        return {name: section for name, section in super().sections().items() if name != "space"}

    @classmethod
    def searchable(cls) -> dict[str, tuple[Any, ...]]:
        """The options that may be lists or ranges, by dotted name, with the values that are tried by default."""
        return {
            f"{name}.{f.name}": f.metadata["tried"]
            for name, section in cls.sections().items()
            for f in dataclasses.fields(section)  # type: ignore[arg-type]
            if f.metadata["searched"]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """As of any stage; a searchable option that is not given is searched if it is by default."""
        space: dict[str, Domain] = {}
        fixed: dict[str, dict[str, Any]] = {name: dict(options) for name, options in values.items()}
        for dotted, tried in cls.searchable().items():
            name, _, key = dotted.partition(".")
            value = fixed.get(name, {}).get(key, tried or None)
            if value is None:
                continue
            domain = _domain(dotted, value)
            # The sections hold one of the values that are tried, so that it goes with those that are fixed.
            fixed.setdefault(name, {})[key] = _representative(domain, _default(dotted))
            if isinstance(domain, Range) or len(domain) > 1:
                space[dotted] = domain
        return cls(**cls._read_sections(fixed), space=space)

    def nested(self) -> dict[str, dict[str, Any]]:
        values = super().nested()
        for dotted, domain in self.space.items():
            name, _, key = dotted.partition(".")
            values[name][key] = domain
        return values
