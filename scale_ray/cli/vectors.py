"""Commands that use a trained aggregator: vectors of videos, nearest neighbours, a model to serve."""

from __future__ import annotations

import tempfile
from dataclasses import asdict

import click

from scale_ray.cli.options import Caller, checkpoint_option, command, runs_option, store_option
from scale_ray.config import (
    BackboneSource,
    Cluster,
    CorpusOptions,
    Embedding,
    Extraction,
    Representing,
    Splits,
    Tracking,
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
    from scale_ray.aggregator import Aggregator
    from scale_ray.runs import aggregator_of

    if (videos is None) == (store is None):
        raise UserError(f"expected either VIDEOS or --store, found {'neither' if videos is None else 'both'}")
    aggregator = Aggregator.load(aggregator_of(checkpoint, caller.place("--runs", runs)))
    place = caller.place("--out", out)
    if store is not None:
        return _embed_store(caller, caller.place("--store", store), place, aggregator, splits, representing, embedding)
    from scale_ray.distributed.extract import embed_videos

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
    from scale_ray.aggregator import Aggregator
    from scale_ray.evaluation import require_width
    from scale_ray.lease import held
    from scale_ray.progress import Progress
    from scale_ray.store import FeatureStore
    from scale_ray.upkeep import tidy
    from scale_ray.vectors import VectorStore, embed_store, fingerprint_of_vectors

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


@click.command()
@click.argument("query")
@store_option
@checkpoint_option
@runs_option
@click.option("--count", default=11, show_default=True, type=click.IntRange(1, 1000), help="Neighbours to show.")
@click.option("--picture", default="neighbours.png", show_default=True, metavar="FILE", help="The contact sheet.")
@click.option("--open", "open_", is_flag=True, help="Open the contact sheet, too.")
@command(Representing, BackboneSource)
def neighbours(
    caller: Caller,
    query: str,
    store: str,
    checkpoint: str,
    runs: str,
    count: int,
    picture: str,
    open_: bool,
    representing: Representing,
    source: BackboneSource,
) -> int:
    """The videos of a store that are nearest to QUERY: a video file, or the id of a stored video.

    Told with cosine, label and path, and drawn on a contact sheet with a frame of each.
    """
    from scale_ray.aggregator import Aggregator
    from scale_ray.evaluation import require_width
    from scale_ray.locations import written_whole
    from scale_ray.nearest import find_neighbours, picture_of_neighbours
    from scale_ray.runs import aggregator_of
    from scale_ray.store import FeatureStore

    features = FeatureStore(store)
    aggregator = Aggregator.load(aggregator_of(checkpoint, runs))
    require_width(features, aggregator)
    found = find_neighbours(query, features, aggregator, count, representing, source.weights_at)
    with written_whole(picture) as file:
        file.write(picture_of_neighbours(found, features))
    width = max((len(near.label or "-") for near in found.neighbours), default=1)
    lines = [f"{near.cosine:6.3f}  {near.label or '-':<{width}}  {near.video_id}" for near in found.neighbours]
    caller.answer([*lines, f"picture: {picture}"], {**asdict(found), "picture": picture})
    if open_:
        click.launch(picture)
    return 0


@click.command()
@checkpoint_option
@runs_option
@click.option("--out", required=True, metavar="DIR", help="Folder for the model.")
@command(Representing, BackboneSource, Tracking)
def export(
    caller: Caller,
    checkpoint: str,
    runs: str,
    out: str,
    representing: Representing,
    source: BackboneSource,
    tracking: Tracking,
) -> int:
    """Backbone, aggregator and sampling as one MLflow model: paths of videos in, vectors out.

    `mlflow models serve -m DIR --env-manager local` answers over HTTP on this machine. With --register it
    also becomes a version of a model in MLflow.
    """
    import os

    from scale_ray.aggregator import Aggregator
    from scale_ray.locations import absolute
    from scale_ray.runs import aggregator_of
    from scale_ray.tracking import Experiment, save_video_model
    from scale_ray.video_model import VideoModel

    location = aggregator_of(checkpoint, caller.place("--runs", runs))
    if os.path.exists(out) and os.listdir(out):
        raise UserError(f"--out: expected an empty folder or none, found files at {out}")
    model = VideoModel.of(Aggregator.load(location), representing, source.weights_at)
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "scale_ray_model")
        model.save(data)
        save_video_model(absolute(out), data)
    if tracking.register is not None:
        options = {"checkpoint": location, "representing": representing.to_dict()}
        with Experiment(tracking, runs).start(f"export of {checkpoint}", options) as record:
            record.model(absolute(out), tracking.register)
    caller.answer(
        [f"model: {out}", f"serve it: mlflow models serve -m {out} --env-manager local --host 127.0.0.1 --port 5001"],
        {"model": absolute(out), "registered": tracking.register},
    )
    return 0
