"""Options of what is written of a trained aggregator's vectors, and of its backbone."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.extraction import CorpusOptions, Extraction
from scale_ray.config.option import Options, option
from scale_ray.config.pretraining import Splits
from scale_ray.config.probing import Representing
from scale_ray.config.runtime import Cluster, Tracking
from scale_ray.config.stage import StageConfig


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


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(StageConfig):
    """The options of `embed`."""

    corpus: CorpusOptions = CorpusOptions()
    splits: Splits = Splits()
    extraction: Extraction = Extraction()
    representing: Representing = Representing()
    embedding: Embedding = Embedding()
    source: BackboneSource = BackboneSource()
    cluster: Cluster = Cluster()


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(StageConfig):
    """The options of `neighbours`."""

    representing: Representing = Representing()
    source: BackboneSource = BackboneSource()


@dataclass(frozen=True, kw_only=True)
class ExportConfig(StageConfig):
    """The options of `export`."""

    representing: Representing = Representing()
    source: BackboneSource = BackboneSource()
    tracking: Tracking = Tracking()
