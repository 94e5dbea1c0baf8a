"""The contents of a corpus, and the estimated cost of its extraction."""

from scale_ray.inspection.corpus_facts import CorpusFacts, facts_of_corpus
from scale_ray.inspection.cost import CostEstimate, Machine, estimate, videos_by_mode
from scale_ray.inspection.headers import Header, read_headers, select_videos
from scale_ray.inspection.trials import Sample, available_cores, available_gpus, measure_sample, spread_sample

__all__ = [
    "CorpusFacts",
    "CostEstimate",
    "Header",
    "Machine",
    "Sample",
    "available_cores",
    "available_gpus",
    "estimate",
    "facts_of_corpus",
    "measure_sample",
    "read_headers",
    "select_videos",
    "spread_sample",
    "videos_by_mode",
]
