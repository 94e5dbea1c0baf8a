"""Videos to stores."""

from __future__ import annotations

from collections.abc import Callable

from scale_ray.config import (
    BackboneOptions,
    Cluster,
    CorpusOptions,
    Extraction,
    Sampling,
)
from scale_ray.corpus.corpus import read_corpus
from scale_ray.distributed.stream import _through
from scale_ray.extraction.run import Run
from scale_ray.extraction.summary import ExtractionSummary
from scale_ray.extraction.targets import opened_targets


def extract(
    videos: str,
    store: str,
    *,
    corpus: CorpusOptions,
    sampling: Sampling,
    backbone: BackboneOptions,
    extraction: Extraction,
    cluster: Cluster,
    say: Callable[[str], None],
    quiet: bool = False,
    verbose: bool = False,
) -> list[ExtractionSummary]:
    """Extract the clips' features of every video that a store does not hold yet, for one or several backbones.

    Raises
    ------
    UserError
        Before anything is written, where the videos, a backbone or a store cannot be used.
    """
    listed = read_corpus(videos, corpus, leave_out=store)
    say(f"{len(listed.videos)} files in {videos} ({listed.split_note})")
    with opened_targets(store, backbone, sampling) as targets:
        return _through(Run(listed, targets, extraction), "extract", sampling, extraction, cluster, quiet, verbose)
