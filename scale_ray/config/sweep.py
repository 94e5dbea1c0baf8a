"""Options of the search for settings."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.option import Check, Options, at_least, option


@dataclass(frozen=True)
class Searching(Options):
    """The sweep."""

    section = "searching"

    validation_share: float = option(
        0.25,
        "Share of the training split, by group, that ranks the settings.",
        check=Check("in (0, 1)", lambda value: 0 < value < 1),
        main=True,
    )
    trials_at_once: int = option(0, "Trials at the same time; 0: one a CPU or GPU.", check=at_least(0), main=True)
