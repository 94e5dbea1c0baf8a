"""The command `neighbours`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, checkpoint_option, command, runs_option, store_option
from scale_ray.cli.submission import LOCATION
from scale_ray.config import NUM_NEIGHBOURS, NeighboursConfig


@click.command()
@click.argument("query")
@store_option
@checkpoint_option
@runs_option
@click.option(
    "--count", default=NUM_NEIGHBOURS, show_default=True, type=click.IntRange(1, 1000), help="Number of neighbours."
)
@click.option(
    "--picture", type=LOCATION, metavar="FILE", help="File for the contact sheet; in RUN/neighbours by default."
)
@click.option("--open", "open_", is_flag=True, help="Open the contact sheet.")
@command(NeighboursConfig)
def neighbours(
    caller: Caller,
    query: str,
    store: str,
    checkpoint: str,
    runs: str,
    count: int,
    picture: str | None,
    open_: bool,
    config: NeighboursConfig,
) -> int:
    """Find the videos of a store that are nearest to QUERY: a video file, or the id of a stored video.

    Prints cosine, label and id, and draws a contact sheet with a frame of each.
    """
    from scale_ray.stages.neighbours import neighbours as run_neighbours

    result = run_neighbours(
        query, store, checkpoint, runs=runs, count=count, picture=picture, config=config, console=caller.console
    )
    caller.print_result(result)
    if open_ and result.picture is not None:
        click.launch(result.picture)
    return 0
