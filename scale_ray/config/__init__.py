"""Every option of every stage, once: its type, default, unit and check.

Each stage's options are one frozen dataclass, and each option one `option(...)` field. The command
line, the jobs, the sweeps and the saved files are all generated from these fields, so that no default
and no limit is written twice.

videos.py        corpus, clips, backbone, extraction
pretraining.py   splits, sets, aggregator, objective, training
using.py         probes, vectors, the search
surroundings.py  MLflow and the Ray cluster
"""

from __future__ import annotations

from scale_ray.config.embedding import BackboneSource, Embedding
from scale_ray.config.extraction import (
    BackboneOptions,
    CorpusOptions,
    Extraction,
    Inspection,
    Sampling,
    store_folder_name,
)
from scale_ray.config.option import Options
from scale_ray.config.pretraining import (
    AggregatorOptions,
    Ingest,
    ObjectiveOptions,
    PretrainConfig,
    Sets,
    Splits,
    Training,
)
from scale_ray.config.probing import PROBES, Probing, Representing
from scale_ray.config.runtime import Cluster, Tracking
from scale_ray.config.sweep import Searching

__all__ = [
    "PROBES",
    "SECTIONS",
    "AggregatorOptions",
    "BackboneOptions",
    "BackboneSource",
    "Cluster",
    "CorpusOptions",
    "Embedding",
    "Extraction",
    "Ingest",
    "Inspection",
    "ObjectiveOptions",
    "PretrainConfig",
    "Probing",
    "Representing",
    "Sampling",
    "Searching",
    "Sets",
    "Splits",
    "Tracking",
    "Training",
    "store_folder_name",
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
