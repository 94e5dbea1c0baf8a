"""Videos, or a feature store, to one vector per video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scale_ray.aggregator import Aggregator
from scale_ray.config import EmbedConfig
from scale_ray.console import Console, Result
from scale_ray.corpus import read_corpus
from scale_ray.distributed.stream import run_stream
from scale_ray.embedding import (
    VectorStore,
    backbone_note,
    backbone_of,
    embed_store,
    fingerprint_of_vectors,
    sampling_of,
)
from scale_ray.errors import UserError
from scale_ray.extraction import ExtractionRun, ExtractionSummary, Target
from scale_ray.pretraining import check_compatible
from scale_ray.store import FeatureStore, Lease, repair, write_lease
from scale_ray.tracking import aggregator_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EmbedResult(Result):
    """The folder of the vectors, and how many of the videos it holds; `summary` if videos were decoded."""

    out: str
    num_videos: int
    num_done: int
    summary: ExtractionSummary | None = None

    def lines(self) -> list[str]:
        if self.summary is not None:
            return self.summary.lines()
        return [f"{self.num_done} of {self.num_videos} videos are in {self.out}"]

    def values(self) -> dict[str, Any]:
        if self.summary is not None:
            return self.summary.values()
        return {"out": self.out, "num_videos": self.num_videos, "num_done": self.num_done}

    def to_pandas(self) -> pd.DataFrame:
        """A row per video: `video_id`, `mode`, `label`, `split` and `vector`."""
        return VectorStore(self.out).to_pandas()


def embed(
    videos: str | None,
    checkpoint: str,
    out: str,
    *,
    store: str | None = None,
    runs: str = "runs",
    config: EmbedConfig,
    console: Console,
) -> EmbedResult:
    """Write one vector per video to the folder `out`, for every video that it does not hold yet.

    Either `videos` are decoded and go through the aggregator's own backbone, with no features stored, or the
    features of `store` are read. The aggregator knows its backbone and sampling; mode `auto` is `eval` here.

    Raises
    ------
    UserError
        Before anything is written, if the videos or the store, the aggregator, its backbone or the folder cannot
        be used.
    """
    if (videos is None) == (store is None):
        raise UserError(f"expected either VIDEOS or --store, found {'neither' if videos is None else 'both'}")
    aggregator = Aggregator.load(aggregator_of(checkpoint, runs))
    if store is not None:
        config.extraction.check_whole("the features of a store")
        return _from_store(store, out, aggregator, config, console)
    assert videos is not None
    return _from_videos(videos, out, aggregator, config, console)


def _from_store(store: str, out: str, aggregator: Aggregator, config: EmbedConfig, console: Console) -> EmbedResult:
    features = FeatureStore(store)
    check_compatible(features, aggregator)
    num_videos = len(features.videos())
    with (
        _opened(out, aggregator, config, console) as (vectors, _),
        console.progress("embed", num_videos, "videos") as progress,
    ):
        num_done = embed_store(features, vectors, progress)
    return EmbedResult(vectors.location, num_videos, num_done)


def _from_videos(videos: str, out: str, aggregator: Aggregator, config: EmbedConfig, console: Console) -> EmbedResult:
    """The same stream as an extraction's, with its ledger, its lease and its commits."""
    corpus = read_corpus(videos, config.corpus, excluded_folder=out)
    console.say(f"{len(corpus.videos)} files in {videos}")
    for line in corpus.notes:
        console.say(line)
    if note := backbone_note(aggregator.origin):
        console.say(note)
    sampling, encoder = sampling_of(aggregator.origin), backbone_of(aggregator.origin, **vars(config.source))
    extraction = config.extraction
    if extraction.mode == "auto":
        extraction = replace(extraction, mode="eval")
    if extraction.mode == "augmented" and "blur_short_px" not in aggregator.origin["sampling"].get("augmented", {}):
        raise UserError(
            "mode: expected eval or train for an aggregator of an earlier version, whose augmented clips were blurred "
            "in other pixels, found augmented"
        )
    with _opened(out, aggregator, config, console) as (vectors, lease):
        run = ExtractionRun(corpus, [Target(encoder, vectors, lease)], extraction)
        if extraction.part is not None:
            console.say(f"part {extraction.part}: {run.num_videos} of {len(corpus.videos)} videos")
        [summary] = run_stream(run, "embed", sampling, extraction, config.cluster, console)
    return EmbedResult(vectors.location, summary.num_videos, summary.num_done, summary)


@contextmanager
def _opened(
    out: str, aggregator: Aggregator, config: EmbedConfig, console: Console
) -> Iterator[tuple[VectorStore, Lease]]:
    """The vector store at `out`, prepared and held for writing."""
    per_clip = config.embedding.per_clip
    vectors = VectorStore.create(out, fingerprint_of_vectors(aggregator, config.representing, per_clip=per_clip))
    vectors.prepare(aggregator, config.representing, per_clip=per_clip, split=config.splits.split)
    part = config.extraction.corpus_part
    with write_lease(vectors.location, console, part) as lease:
        with lease.exclusively():
            repair(vectors, others_write=part is not None)
        yield vectors, lease
