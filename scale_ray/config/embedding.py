"""Options of vectors, neighbours and exported models."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.extraction import CorpusOptions, Extraction
from scale_ray.config.option import Options, option
from scale_ray.config.pretraining import Splits
from scale_ray.config.probing import Representing
from scale_ray.config.runtime import Cluster, Tracking
from scale_ray.config.stage import StageConfig

# Neighbours that are shown of a query: with it two rows of a contact sheet.
NUM_NEIGHBOURS = 11


@dataclass(frozen=True)
class Embedding(Options):
    """Which vectors are written."""

    section = "embedding"

    per_clip: bool = option(False, "Also write one vector per clip, to `clips/`.", main=True)


@dataclass(frozen=True)
class BackboneSource(Options):
    """Where the weights of an aggregator's backbone are; the aggregator's folder has its other options."""

    section = "source"

    weights_at: str | None = option(
        None, "Weights of the backbone, if they have moved since `extract`: default or a FILE.", is_location=True
    )
    trust_custom_backbone: bool = option(
        False, "Run the package.module:function that the aggregator's file names as its backbone: its author's code."
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
