"""The options of one stage: its sections as the fields of one dataclass, by section or by option name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from scale_ray.config.option import Options, nearest
from scale_ray.errors import UserError

_Stage = TypeVar("_Stage", bound="StageConfig")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Base of the stages' configurations: every field is a section of options, named as the section is.

    Option names are unique within a stage, so that `replaced(mask_ratio=0.5)` finds the section by itself.
    """

    # Sections that say where a stage runs and who keeps the record, not what it computes.
    RUNTIME: typing.ClassVar[tuple[str, ...]] = ("tracking", "cluster")

    @classmethod
    def sections(cls) -> dict[str, type[Options]]:
        """The stage's sections by name, in order."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def option_sections(cls) -> dict[str, str]:
        """The section of every option of the stage, by option name."""
        return {
            field.name: name
            for name, section in cls.sections().items()
            for field in dataclasses.fields(section)  # type: ignore[arg-type]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """The configuration with these options by section; what is not given has its default.

        Raises
        ------
        UserError
            For an unknown section or option, a value of the wrong type or one outside its range.
        """
        return cls(**cls._read_sections(values))

    @classmethod
    def _read_sections(cls, values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        sections = cls.sections()
        for name in values:
            if name not in sections:
                raise UserError(f"{name}: unknown section, expected {nearest(name, list(sections))}")
        return {name: sections[name].from_dict(values[name]) for name in values}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """What decides the stage's result, by section: saved with a run, and compared when it is continued."""
        return {name: getattr(self, name).to_dict() for name in self.sections() if name not in self.RUNTIME}

    def nested(self) -> dict[str, dict[str, Any]]:
        """All options by section, as `from_dict` takes them."""
        return {name: getattr(self, name).to_dict() for name in self.sections()}

    @classmethod
    def searchable(cls) -> Mapping[str, tuple[Any, ...]]:
        """The options that may be lists or ranges of values, by dotted name; only a sweep has some."""
        return {}

    def replaced(self, **options: Any) -> Self:
        """A copy with some options set, given by their names: `replaced(mask_ratio=0.5, epochs=3)`.

        Raises
        ------
        UserError
            For an unknown option (names the nearest known ones), or a value that is not valid.
        """
        known = self.option_sections()
        for name in options:
            if name not in known:
                raise UserError(f"{name}: unknown option, expected {nearest(name, list(known))}")
        return self.with_values({f"{known[name]}.{name}": value for name, value in options.items()})

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy with values of dotted names set: `{"sets.mask_ratio": 0.5}`."""
        merged = self.nested()
        for dotted, value in values.items():
            section, _, name = dotted.partition(".")
            merged[section][name] = value
        return type(self).from_dict(merged)

    def part(self, stage: type[_Stage]) -> _Stage:
        """The configuration of another stage with the sections that both have; the rest has its defaults."""
        return stage(**{name: getattr(self, name) for name in self.sections() if name in stage.sections()})
