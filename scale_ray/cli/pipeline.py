"""The command `pipeline`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, run_option, runs_option, store_option
from scale_ray.cli.submission import LOCATION
from scale_ray.config import PipelineConfig


@click.command()
@click.argument("videos", type=LOCATION)
@store_option
@run_option()
@runs_option
@command(PipelineConfig)
def pipeline(caller: Caller, videos: str, store: str, run: str, runs: str, config: PipelineConfig) -> int:
    """Run extract, pretrain and probe in one call: from VIDEOS to the table."""
    from scale_ray.stages.pipeline import pipeline as run_pipeline

    caller.print_result(run_pipeline(videos, store, run, runs=runs, config=config, console=caller.console))
    return 0
