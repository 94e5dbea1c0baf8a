"""The command `pretrain`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, run_option, runs_option
from scale_ray.cli.submission import Location
from scale_ray.config import PretrainConfig


@click.command()
@click.option(
    "--store",
    required=True,
    type=Location(several=True),
    metavar="DIR[,DIR]",
    envvar="SCALE_RAY_STORE",
    help="The feature store, or several of one backbone separated by commas: folders or URIs.",
)
@run_option()
@runs_option
@command(PretrainConfig)
def pretrain(caller: Caller, store: str, run: str, runs: str, config: PretrainConfig) -> int:
    """Train the aggregator on feature stores, self-supervised.

    The same --run with the same options resumes an unfinished run.
    """
    from scale_ray.stages.pretrain import pretrain as run_pretrain

    caller.print_result(run_pretrain(store, run, runs=runs, config=config, console=caller.console))
    return 0
