"""The corpus: where the videos are, with their labels, groups and splits."""

from scale_ray.corpus.corpus import COLUMNS, Corpus, read_corpus
from scale_ray.corpus.splits import DEFAULT, modes_of

__all__ = [
    "COLUMNS",
    "DEFAULT",
    "Corpus",
    "modes_of",
    "read_corpus",
]
