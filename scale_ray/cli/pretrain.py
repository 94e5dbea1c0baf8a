"""The command `pretrain`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, run_option, runs_option, store_option
from scale_ray.config import (
    AggregatorOptions,
    Cluster,
    Ingest,
    ObjectiveOptions,
    PretrainConfig,
    Sets,
    Splits,
    Tracking,
    Training,
)


@click.command()
@store_option
@run_option()
@runs_option
@command(Splits, Sets, AggregatorOptions, ObjectiveOptions, Training, Ingest, Tracking, Cluster)
def pretrain(
    caller: Caller,
    store: str,
    run: str,
    runs: str,
    splits: Splits,
    sets: Sets,
    aggregator: AggregatorOptions,
    objective: ObjectiveOptions,
    training: Training,
    ingest: Ingest,
    tracking: Tracking,
    cluster: Cluster,
) -> int:
    """Train the aggregator on a feature store, self-supervised.

    The same --run with the same options goes on where an unfinished run stopped.
    """
    from scale_ray.stages.pretrain import pretrain as run_pretrain

    folder = run_pretrain(
        caller.place("--store", store),
        run,
        caller.place("--runs", runs),
        config=PretrainConfig(sets, aggregator, objective, training, ingest, splits),
        tracking=tracking,
        cluster=cluster,
        say=caller.say,
        quiet=caller.quiet,
        verbose=caller.verbose,
    )
    first, last = folder.history()[0], folder.history()[-1]
    names = {"loss": "loss", "set_top1": "set contrast top-1", "clip_top1": "masked clip top-1"}
    moved = [f"{told} {first[name]:.3f} -> {last[name]:.3f}" for name, told in names.items() if name in last]
    caller.answer(
        [
            f"{', '.join(moved)} over {int(last['epoch'])} epochs",
            f"aggregator: {folder.aggregator}",
        ],
        {"aggregator": folder.aggregator, "mlflow_run": folder.mlflow_run(), "last_epoch": last},
    )
    return 0
