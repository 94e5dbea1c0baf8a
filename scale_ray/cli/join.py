"""The command `join`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, store_option
from scale_ray.cli.submission import LOCATION


@click.command()
@click.argument("first", type=LOCATION)
@click.argument("second", type=LOCATION)
@store_option
@command()
def join(caller: Caller, first: str, second: str, store: str) -> int:
    """Join the features of two backbones in one store.

    FIRST and SECOND are stores of the same clips, by two backbones, as `extract --backbone A,B` writes them. A clip's
    feature in the new store is that of FIRST followed by that of SECOND.
    """
    from scale_ray.stages.join import join as run_join

    caller.print_result(run_join(first, second, store, console=caller.console))
    return 0
