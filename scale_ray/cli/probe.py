"""The command `probe`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, runs_option, store_option
from scale_ray.config import (
    Ingest,
    Probing,
    Representing,
    Splits,
    Tracking,
)


@click.command()
@store_option
@click.option(
    "--checkpoint",
    required=True,
    metavar="RUN",
    help="A run's name or folder, or an aggregator's folder; several by commas, one a seed.",
)
@runs_option
@click.option("--out", metavar="DIR", help="Where tables and pictures go; RUN/probe by default.")
@command(Probing, Representing, Splits, Ingest, Tracking)
def probe(
    caller: Caller,
    store: str,
    checkpoint: str,
    runs: str,
    out: str | None,
    probing: Probing,
    representing: Representing,
    splits: Splits,
    ingest: Ingest,
    tracking: Tracking,
) -> int:
    """What the representations are worth, beside their baselines.

    Classes, several labels or numbers are told from them. Probes: knn, linear, mlp (the paper's non-linear
    baseline), attentive, finetuned, lowshot, retrieval, clustering. Settings are chosen on a part of the
    training split; the test split is only scored.
    """
    from scale_ray.stages.probe import probe as run_probe

    tables, folder = run_probe(
        caller.place("--store", store),
        checkpoint,
        caller.place("--runs", runs),
        probing=probing,
        representing=representing,
        splits=splits,
        ingest=ingest,
        tracking=tracking,
        out=caller.place("--out", out) if out else None,
        quiet=caller.quiet,
    )
    lines = [line for table in tables for line in ([f"split {table.split}"] * (len(tables) > 1) + table.lines())]
    values = tables[0].values() if len(tables) == 1 else {"splits": [table.values() for table in tables]}
    caller.answer([*lines, *([f"tables and pictures: {folder}"] if folder else [])], {**values, "folder": folder})
    return 0
