"""The command `sweep`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, run_option, runs_option, store_option
from scale_ray.config import SweepConfig, nearest
from scale_ray.errors import UserError


@click.command()
@store_option
@run_option("sweep")
@runs_option
@click.option(
    "--try",
    "tried",
    multiple=True,
    hidden=True,
    metavar="NAME=VALUES",
    help="What to try for an option by its dotted name, such as aggregator.layers=1,2; may be repeated.",
)
@command(SweepConfig)
def sweep(caller: Caller, store: str, run: str, runs: str, tried: tuple[str, ...], config: SweepConfig) -> int:
    """Search for the best setting: masking ratio, set size or any option.

    Many options may be several values, 0.15,0.5, a range, 0.1..0.9, or a log range, log:1e-4..1e-2. The same --run
    continues a sweep and runs only what is missing, also when the search has grown.
    """
    from scale_ray.stages.sweep import sweep as run_sweep

    config = config.with_values(dict(map(_named_values, tried)))
    result = run_sweep(store, run, runs=runs, config=config, console=caller.console)
    caller.print_result(result)
    # A job fails only if there is no ranking.
    return 3 if result.num_failed and not caller.job else 0


def _named_values(text: str) -> tuple[str, str]:
    """`aggregator.layers=1,2` as a dotted name and its values."""
    name, separator, values = text.partition("=")
    known = SweepConfig.searchable()
    if not separator or name not in known:
        raise UserError(f"--try: expected NAME=VALUES with NAME {nearest(name, list(known))}, found {text!r}")
    return name, values
