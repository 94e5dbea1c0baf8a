"""The command `neighbours`."""

from __future__ import annotations

from dataclasses import asdict

import click

from scale_ray.cli.options import Caller, checkpoint_option, command, runs_option, store_option
from scale_ray.config import (
    BackboneSource,
    Representing,
)


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
    from scale_ray.aggregator.model import Aggregator
    from scale_ray.embedding.neighbours import find_neighbours
    from scale_ray.locations import written_whole
    from scale_ray.pretraining.provenance import require_width
    from scale_ray.stages.neighbours import picture_of_neighbours
    from scale_ray.store.feature_store import FeatureStore
    from scale_ray.tracking.run_folder import aggregator_of

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
