"""The contents of a corpus, and the estimated cost of its extraction."""

from scale_ray.inspection.corpus_facts import CorpusFacts, facts_of_corpus
from scale_ray.inspection.cost import CostEstimate, Machine, estimate, videos_by_mode
from scale_ray.inspection.headers import Header, chosen, read_headers
from scale_ray.inspection.trials import Sample, cores_here, gpus_here, measure, spread_sample

__all__ = [
    "CorpusFacts",
    "CostEstimate",
    "Header",
    "Machine",
    "Sample",
    "chosen",
    "cores_here",
    "estimate",
    "facts_of_corpus",
    "gpus_here",
    "measure",
    "read_headers",
    "spread_sample",
    "videos_by_mode",
]
