"""The command `probe`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command, runs_option, store_option
from scale_ray.cli.submission import LOCATION
from scale_ray.config import ProbeConfig


@click.command()
@store_option
@click.option(
    "--checkpoint",
    required=True,
    metavar="RUN",
    help="A run's name or folder, or an aggregator's folder; several separated by commas, one per seed.",
)
@runs_option
@click.option("--out", type=LOCATION, metavar="DIR", help="Folder for tables and pictures; RUN/probe by default.")
@command(ProbeConfig)
def probe(caller: Caller, store: str, checkpoint: str, runs: str, out: str | None, config: ProbeConfig) -> int:
    """Measure what the representations are worth, beside their baselines.

    They predict classes, several labels or numbers. Probes: knn, linear, mlp (the paper's non-linear baseline),
    attentive, finetuned, lowshot, retrieval, clustering. Settings are chosen on a part of the training split; the
    test split is only scored.
    """
    from scale_ray.stages.probe import probe as run_probe

    caller.print_result(run_probe(store, checkpoint, runs=runs, out=out, config=config, console=caller.console))
    return 0
