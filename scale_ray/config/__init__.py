"""Every option of every stage, once: its type, default, unit and check.

Options come in sections, one frozen dataclass each, and each option is one `option(...)` field. A stage's
configuration is a keyword-only dataclass of sections. The command line, the Python functions, the jobs, the
sweeps and the saved files are all generated from these fields, so that no default and no limit is written twice.

option.py        what an option is
labels.py        selectors of nodes
domain.py        what a search may try for one
stage.py         what a stage's configuration is
extraction.py    corpus, clips, backbone, extraction, inspection
pretraining.py   splits, clip sets, aggregator, objective, training, ingest
probing.py       probes, representations
embedding.py     vectors, export
sweep.py         the search
pipeline.py      all stages one after the other
runtime.py       MLflow and the Ray cluster
"""

from __future__ import annotations

from scale_ray.config.domain import (
    Domain,
    Range,
    domain_text,
    log_uniform,
    lowest_and_highest,
    setting_name,
    uniform,
)
from scale_ray.config.embedding import (
    NUM_NEIGHBOURS,
    BackboneSource,
    EmbedConfig,
    Embedding,
    ExportConfig,
    NeighboursConfig,
)
from scale_ray.config.extraction import (
    BackboneOptions,
    CorpusOptions,
    ExtractConfig,
    Extraction,
    InspectConfig,
    Inspection,
    Part,
    Sampling,
    store_folder_name,
)
from scale_ray.config.labels import matches, parse_labels
from scale_ray.config.option import RENAMED, Options, flag_of, nearest, option_types, read_value
from scale_ray.config.pipeline import DEMO, DEMO_VIDEOS_PER_CLASS, PipelineConfig
from scale_ray.config.pretraining import (
    AggregatorOptions,
    Ingest,
    ObjectiveOptions,
    PretrainConfig,
    Sets,
    Splits,
    Training,
)
from scale_ray.config.probing import PARTS, PROBES, ProbeConfig, Probing, Representing
from scale_ray.config.runtime import Cluster, DemoConfig, Tracking, UiConfig
from scale_ray.config.stage import StageConfig
from scale_ray.config.sweep import Searching, SweepConfig

__all__ = [
    "DEMO",
    "DEMO_VIDEOS_PER_CLASS",
    "NUM_NEIGHBOURS",
    "PARTS",
    "PROBES",
    "RENAMED",
    "SECTIONS",
    "AggregatorOptions",
    "BackboneOptions",
    "BackboneSource",
    "Cluster",
    "CorpusOptions",
    "DemoConfig",
    "Domain",
    "EmbedConfig",
    "Embedding",
    "ExportConfig",
    "ExtractConfig",
    "Extraction",
    "Ingest",
    "InspectConfig",
    "Inspection",
    "NeighboursConfig",
    "ObjectiveOptions",
    "Options",
    "Part",
    "PipelineConfig",
    "PretrainConfig",
    "ProbeConfig",
    "Probing",
    "Range",
    "Representing",
    "Sampling",
    "Searching",
    "Sets",
    "Splits",
    "StageConfig",
    "SweepConfig",
    "Tracking",
    "Training",
    "UiConfig",
    "domain_text",
    "flag_of",
    "log_uniform",
    "lowest_and_highest",
    "matches",
    "nearest",
    "option_types",
    "parse_labels",
    "read_value",
    "setting_name",
    "store_folder_name",
    "uniform",
]

SECTIONS: dict[str, type[Options]] = {
    section.section: section
    for section in (
        CorpusOptions,
        Sampling,
        BackboneOptions,
        Extraction,
        Inspection,
        Splits,
        Sets,
        AggregatorOptions,
        ObjectiveOptions,
        Training,
        Ingest,
        Probing,
        Representing,
        Embedding,
        BackboneSource,
        Searching,
        Tracking,
        Cluster,
    )
}
