"""The command `inspect`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command
from scale_ray.cli.submission import LOCATION
from scale_ray.config import InspectConfig


@click.command()
@click.argument("videos", type=LOCATION)
@command(InspectConfig)
def inspect(caller: Caller, videos: str, config: InspectConfig) -> int:
    """Show what is in VIDEOS, and what its extraction will cost on this machine.

    Opens the files, decodes some of them and times the backbone; writes nothing. VIDEOS is what `extract` takes.
    """
    from scale_ray.stages.inspect import inspect as run_inspect

    result = run_inspect(videos, config=config, console=caller.console)
    caller.print_result(result)
    return 3 if result.num_unreadable else 0
