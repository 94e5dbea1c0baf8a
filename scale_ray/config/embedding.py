"""Options of what is written of a trained aggregator's vectors, and of its backbone."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.option import Options, option


@dataclass(frozen=True)
class Embedding(Options):
    """What is written of the vectors."""

    section = "embedding"

    per_clip: bool = option(False, "Write the vectors of clips, too, in `clips/`.", main=True)


@dataclass(frozen=True)
class BackboneSource(Options):
    """Where an aggregator's backbone comes from: all else of it is known from the aggregator's folder."""

    section = "source"

    weights_at: str | None = option(
        None, "Where the backbone's weights are, if not where they were in `extract`: default or a FILE."
    )
