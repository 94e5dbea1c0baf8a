"""The command `sweep`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from scale_ray.cli.options import Caller, command, run_option, runs_option, store_option, sweep_options
from scale_ray.config import (
    AggregatorOptions,
    Cluster,
    ObjectiveOptions,
    PretrainConfig,
    Probing,
    Searching,
    Sets,
    Splits,
    Tracking,
    Training,
)


@click.command()
@store_option
@run_option("sweep")
@runs_option
@sweep_options(Sets)
@command(Splits, AggregatorOptions, ObjectiveOptions, Training, Searching, Probing, Tracking, Cluster)
def sweep(
    caller: Caller,
    store: str,
    run: str,
    runs: str,
    splits: Splits,
    aggregator: AggregatorOptions,
    objective: ObjectiveOptions,
    training: Training,
    searching: Searching,
    probing: Probing,
    tracking: Tracking,
    cluster: Cluster,
    **grid: Any,
) -> int:
    """Search mask ratio and set size; settings are ranked on held-out training videos."""
    from scale_ray.stages.sweep import sweep as run_sweep

    result = run_sweep(
        caller.place("--store", store),
        run,
        caller.place("--runs", runs),
        {f"{Sets.section}.{name.removeprefix('grid__')}": values for name, values in grid.items() if values},
        config=PretrainConfig(Sets(), aggregator, objective, training, splits=splits),
        searching=searching,
        probing=probing,
        tracking=tracking,
        cluster=cluster,
        say=caller.say,
        quiet=caller.quiet,
        verbose=caller.verbose,
    )
    caller.answer(result.lines(), asdict(result))
    return 0
