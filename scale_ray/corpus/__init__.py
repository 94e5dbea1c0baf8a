"""Where the videos are, and what is known of them."""

from scale_ray.corpus.corpus import COLUMNS, Corpus, read_corpus
from scale_ray.corpus.splits import DEFAULT, modes_of

__all__ = [
    "COLUMNS",
    "DEFAULT",
    "Corpus",
    "modes_of",
    "read_corpus",
]
