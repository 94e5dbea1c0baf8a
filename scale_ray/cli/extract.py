"""The command `extract`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, store_option
from scale_ray.cli.submission import LOCATION
from scale_ray.config import ExtractConfig


@click.command()
@click.argument("videos", type=LOCATION)
@store_option
@command(ExtractConfig)
def extract(caller: Caller, videos: str, store: str, config: ExtractConfig) -> int:
    """Extract the clip features of VIDEOS into a feature store.

    VIDEOS is a folder (one subfolder per class, or UCF-101, HMDB-51, Kinetics, Something-Something v2 with their
    lists), a quoted glob, or a CSV or Parquet manifest with a column `path` and, if known, `label`, `split`, `group`;
    local or a URI. Videos that the store already holds are not read again. With several backbones, --backbone A,B,
    each has its own store, DIR/A and DIR/B.
    """
    from scale_ray.stages.extract import extract as run_extract

    result = run_extract(videos, store, config=config, console=caller.console)
    caller.print_result(result)
    return caller.code_of(result.stores, config.extraction.max_failed_share)
