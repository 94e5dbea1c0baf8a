"""Videos to vectors, straight through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from scale_ray.config import (
    BackboneSource,
    Cluster,
    CorpusOptions,
    Embedding,
    Extraction,
    Representing,
    Splits,
)
from scale_ray.corpus.corpus import read_corpus
from scale_ray.distributed.stream import _through
from scale_ray.extraction.run import Run
from scale_ray.extraction.summary import ExtractionSummary
from scale_ray.extraction.targets import Target
from scale_ray.store.lease import held
from scale_ray.store.maintenance import tidy

if TYPE_CHECKING:  # the decoding tasks import this module, and do without torch: 4 s and 500 MB each
    from scale_ray.aggregator.model import Aggregator


def embed_videos(
    videos: str,
    out: str,
    aggregator: Aggregator,
    *,
    corpus: CorpusOptions,
    splits: Splits,
    extraction: Extraction,
    representing: Representing,
    embedding: Embedding,
    source: BackboneSource,
    cluster: Cluster,
    say: Callable[[str], None],
    quiet: bool = False,
    verbose: bool = False,
) -> ExtractionSummary:
    """Vectors of every video that the folder `out` does not hold yet, from the files, with no features stored.

    Backbone and sampling are those of the aggregator; mode `auto` is `eval` here. The same stream as an
    extraction's: its ledger, its lease and its commits.

    Raises
    ------
    UserError
        Before anything is written, where the videos, the backbone or the folder cannot be used.
    """
    from scale_ray.embedding.vector_store import VectorStore, fingerprint_of_vectors
    from scale_ray.embedding.video_model import backbone_of, sampling_of

    listed = read_corpus(videos, corpus, leave_out=out)
    say(f"{len(listed.videos)} files in {videos}")
    sampling, encoder = sampling_of(aggregator.origin), backbone_of(aggregator.origin, source.weights_at)
    if extraction.mode == "auto":
        extraction = replace(extraction, mode="eval")
    vectors = VectorStore.create(out, fingerprint_of_vectors(aggregator, representing, per_clip=embedding.per_clip))
    vectors.prepare(aggregator, representing, per_clip=embedding.per_clip, split=splits.split)
    with held(vectors.location) as lease:
        tidy(vectors)
        run = Run(listed, [Target(encoder, vectors, lease)], extraction)
        [summary] = _through(run, "embed", sampling, extraction, cluster, quiet, verbose)
    return summary
