"""The command `backbones`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--measure", is_flag=True, help="Measure the seconds per clip on this machine, for each NAME.")
@command()
def backbones(caller: Caller, names: tuple[str, ...], measure: bool) -> int:
    """List what --backbone accepts, with sizes and costs; or only the given NAMEs.

    A NAME may be anything that --backbone accepts, including an hf: folder or your own function.
    """
    from scale_ray.stages.backbones import backbones as list_backbones

    caller.print_result(list_backbones(names, measure=measure))
    return 0
