"""The command `embed`."""

from __future__ import annotations

from dataclasses import asdict

import click

from scale_ray.cli.options import Caller, checkpoint_option, command, runs_option
from scale_ray.config import (
    BackboneSource,
    Cluster,
    CorpusOptions,
    Embedding,
    Extraction,
    Representing,
    Splits,
)
from scale_ray.errors import UserError


@click.command()
@click.argument("videos", required=False)
@click.option("--store", metavar="DIR", envvar="SCALE_RAY_STORE", help="A feature store, instead of VIDEOS.")
@checkpoint_option
@runs_option
@click.option("--out", required=True, metavar="DIR", help="Folder or URI for the vectors.")
@command(CorpusOptions, Splits, Extraction, Representing, Embedding, BackboneSource, Cluster)
def embed(
    caller: Caller,
    videos: str | None,
    store: str | None,
    checkpoint: str,
    runs: str,
    out: str,
    corpus: CorpusOptions,
    splits: Splits,
    extraction: Extraction,
    representing: Representing,
    embedding: Embedding,
    source: BackboneSource,
    cluster: Cluster,
) -> int:
    """One vector a video, as Parquet: of a feature store, or straight from VIDEOS.

    DIR/vectors holds video_id, label, split and vector. The aggregator knows its backbone and its sampling: of
    VIDEOS the `eval` clips are taken, unless --mode says otherwise, and no features are stored. What is there
    already is not done again.
    """
    from scale_ray.aggregator.model import Aggregator
    from scale_ray.tracking.run_folder import aggregator_of

    if (videos is None) == (store is None):
        raise UserError(f"expected either VIDEOS or --store, found {'neither' if videos is None else 'both'}")
    aggregator = Aggregator.load(aggregator_of(checkpoint, caller.place("--runs", runs)))
    place = caller.place("--out", out)
    if store is not None:
        return _embed_store(caller, caller.place("--store", store), place, aggregator, splits, representing, embedding)
    from scale_ray.stages.embed import embed_videos

    assert videos is not None
    summary = embed_videos(
        caller.place("VIDEOS", videos),
        place,
        aggregator,
        corpus=corpus,
        splits=splits,
        extraction=extraction,
        representing=representing,
        embedding=embedding,
        source=source,
        cluster=cluster,
        say=caller.say,
        quiet=caller.quiet,
        verbose=caller.verbose,
    )
    caller.answer(summary.lines(), asdict(summary))
    if caller.job:
        return 1 if summary.failed_share > extraction.max_failed_share else 0
    if summary.num_done == 0:
        return 1
    return 3 if summary.failures else 0


def _embed_store(
    caller: Caller,
    store: str,
    out: str,
    aggregator: object,
    splits: Splits,
    representing: Representing,
    embedding: Embedding,
) -> int:
    from scale_ray.aggregator.model import Aggregator
    from scale_ray.console import Progress
    from scale_ray.embedding.vector_store import VectorStore, embed_store, fingerprint_of_vectors
    from scale_ray.pretraining.provenance import require_width
    from scale_ray.store.feature_store import FeatureStore
    from scale_ray.store.lease import held
    from scale_ray.store.maintenance import tidy

    assert isinstance(aggregator, Aggregator)
    features = FeatureStore(store)
    require_width(features, aggregator)
    vectors = VectorStore.create(out, fingerprint_of_vectors(aggregator, representing, per_clip=embedding.per_clip))
    vectors.prepare(aggregator, representing, per_clip=embedding.per_clip, split=splits.split)
    num_videos = len(features.videos())
    with held(vectors.location), Progress("embed", num_videos, "videos", quiet=caller.quiet) as progress:
        tidy(vectors)
        done = embed_store(features, vectors, progress)
    caller.answer(
        [f"{done} of {num_videos} videos are in {out}"],
        {"out": vectors.location, "num_videos": num_videos, "num_done": done},
    )
    return 0
