"""Options of the search for settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from scale_ray.config.option import Check, Options, at_least, grid_of, option
from scale_ray.config.pretraining import AggregatorOptions, ObjectiveOptions, Sets, Splits, Training
from scale_ray.config.probing import Probing
from scale_ray.config.runtime import Cluster, Tracking
from scale_ray.config.stage import StageConfig


@dataclass(frozen=True)
class Searching(Options):
    """The sweep."""

    section = "searching"

    validation_share: float = option(
        0.25,
        "Fraction of the training split, by group, on which the settings are ranked.",
        check=Check("in (0, 1)", lambda value: 0 < value < 1),
        main=True,
    )
    trials_at_once: int = option(
        0, "Maximum number of concurrent trials; 0: one per CPU or GPU.", check=at_least(0), main=True
    )


Grid = grid_of(Sets)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(StageConfig):
    """The options of `sweep`: those of the pretraining, with a grid in the place of the clip sets."""

    grid: Options = Grid()
    splits: Splits = Splits()
    aggregator: AggregatorOptions = AggregatorOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    training: Training = Training()
    searching: Searching = Searching()
    probing: Probing = Probing()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()

    @classmethod
    def sections(cls) -> dict[str, type[Options]]:
        return {**super().sections(), "grid": Grid}

    def tried(self) -> dict[str, tuple[Any, ...]]:
        """The values to try by dotted name, `{"sets.mask_ratio": (0.15, 0.25), ...}`; options without any left out."""
        values = dataclasses.asdict(self.grid)  # type: ignore[call-overload]
        return {f"{Sets.section}.{name}": tuple(tried) for name, tried in values.items() if tried}
