"""The corpus: where the videos are, with their labels, groups and splits."""

from scale_ray.corpus.columns import VIDEO_COLUMNS
from scale_ray.corpus.corpus import Corpus, read_corpus
from scale_ray.corpus.splits import DEFAULT_SPLIT, SUBSETS, modes_of

__all__ = [
    "DEFAULT_SPLIT",
    "SUBSETS",
    "VIDEO_COLUMNS",
    "Corpus",
    "modes_of",
    "read_corpus",
]
