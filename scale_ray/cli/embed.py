"""The command `embed`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, checkpoint_option, command, runs_option
from scale_ray.cli.submission import LOCATION
from scale_ray.config import EmbedConfig


@click.command()
@click.argument("videos", required=False, type=LOCATION)
@click.option(
    "--store", type=LOCATION, metavar="DIR", envvar="SCALE_RAY_STORE", help="A feature store, instead of VIDEOS."
)
@checkpoint_option
@runs_option
@click.option("--out", required=True, type=LOCATION, metavar="DIR", help="Folder or URI for the vectors.")
@command(EmbedConfig)
def embed(
    caller: Caller, videos: str | None, store: str | None, checkpoint: str, runs: str, out: str, config: EmbedConfig
) -> int:
    """Write one vector per video, as Parquet: from a feature store, or straight from VIDEOS.

    DIR/vectors holds video_id, label, split and vector. The aggregator knows its backbone and its sampling: the
    `eval` clips of VIDEOS are used, unless --mode says otherwise, and no features are stored. Vectors that are
    already there are not computed again.
    """
    from scale_ray.stages.embed import embed as run_embed

    result = run_embed(
        videos,
        checkpoint,
        out,
        store=store,
        runs=runs,
        config=config,
        console=caller.console,
    )
    caller.print_result(result)
    return 0 if result.summary is None else caller.code_of([result.summary], config.extraction.max_failed_share)
