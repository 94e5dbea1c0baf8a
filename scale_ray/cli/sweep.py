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
    """Search masking ratio and set size; settings are ranked on held-out training videos."""
    from scale_ray.stages.sweep import sweep as run_sweep

    store, runs = caller.check_path("--store", store), caller.check_path("--runs", runs)
    caller.print_result(run_sweep(store, run, runs=runs, config=config, console=caller.console))
    return 0
