"""The command `sweep`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, run_option, runs_option, store_option
from scale_ray.config import SweepConfig


@click.command()
@store_option
@run_option("sweep")
@runs_option
@command(SweepConfig)
def sweep(caller: Caller, store: str, run: str, runs: str, config: SweepConfig) -> int:
    """Search for the best setting: masking ratio, set size or any option.

    Many options may be several values, 0.15,0.5, a range, 0.1..0.9, or a log range, log:1e-4..1e-2. The same --run
    continues a sweep and runs only what is missing, also when the search has grown.
    """
    from scale_ray.stages.sweep import sweep as run_sweep

    store, runs = caller.check_path("--store", store), caller.check_path("--runs", runs)
    result = run_sweep(store, run, runs=runs, config=config, console=caller.console)
    caller.print_result(result)
    # A job fails only if there is no ranking.
    return 3 if result.num_failed and not caller.job else 0
