"""The command `export`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, checkpoint_option, command, runs_option
from scale_ray.cli.submission import LOCATION
from scale_ray.config import ExportConfig


@click.command()
@checkpoint_option
@runs_option
@click.option("--out", required=True, type=LOCATION, metavar="DIR", help="Folder for the model.")
@command(ExportConfig)
def export(caller: Caller, checkpoint: str, runs: str, out: str, config: ExportConfig) -> int:
    """Save backbone, aggregator and sampling as one MLflow model: paths of videos in, vectors out.

    `mlflow models serve -m DIR --env-manager local` answers over HTTP on this machine. With --register it also becomes
    a version of a registered model in MLflow.
    """
    from scale_ray.stages.export import export as run_export

    caller.print_result(run_export(checkpoint, out, runs=runs, config=config, console=caller.console))
    return 0
