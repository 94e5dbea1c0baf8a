"""Probes of representations: fitted heads, nearest neighbours, clustering; their metrics and tables."""

from scale_ray.probes.evaluation import BACKBONE_ALONE, TRAINED_AGGREGATOR, FigureData, num_representations, probe_table
from scale_ray.probes.monitor import FoldValidation, TrainingMonitor, ranking_of
from scale_ray.probes.table import ProbeTable, in_markdown, mean_table, title_of
from scale_ray.probes.targets import CLASSES, NUMBERS

__all__ = [
    "BACKBONE_ALONE",
    "CLASSES",
    "NUMBERS",
    "TRAINED_AGGREGATOR",
    "FigureData",
    "FoldValidation",
    "ProbeTable",
    "TrainingMonitor",
    "in_markdown",
    "mean_table",
    "num_representations",
    "probe_table",
    "ranking_of",
    "title_of",
]
