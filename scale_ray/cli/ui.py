"""The command `ui`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import click

from scale_ray.cli.options import Caller, command, runs_option
from scale_ray.config import UiConfig


@click.command()
@runs_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@command(UiConfig, as_job=False)
def ui(caller: Caller, runs: str, host: str, port: int, config: UiConfig) -> int:
    """Serve MLflow's page of all runs on this machine."""
    from scale_ray.tracking import server_command, server_environment

    program, *arguments = server_command(config.tracking, runs, host, port)
    # The program of the environment that this one runs in, activated or not.
    beside = os.path.join(os.path.dirname(sys.executable), program)
    # Without the query a new browser opens the page for applications of language models.
    page = f"http://{host}:{port}/#/experiments?workflowType=machine_learning"
    caller.console.say(f"MLflow at {page} (Ctrl-C ends it)")
    return subprocess.call(
        [beside if os.path.exists(beside) else shutil.which(program) or program, *arguments],
        env={**os.environ, **server_environment(config.tracking, runs)},
    )
