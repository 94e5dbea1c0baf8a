"""`scale-ray`: the group of commands, and their exit codes.

0: success; 1: the run failed; 2: an error that the user can correct; 3: success, but some videos failed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import click

from scale_ray import __version__
from scale_ray.cli.backbones import backbones
from scale_ray.cli.demo import demo
from scale_ray.cli.embed import embed
from scale_ray.cli.export import export
from scale_ray.cli.extract import extract
from scale_ray.cli.inspect import inspect
from scale_ray.cli.join import join
from scale_ray.cli.neighbours import neighbours
from scale_ray.cli.pipeline import pipeline
from scale_ray.cli.pretrain import pretrain
from scale_ray.cli.probe import probe
from scale_ray.cli.store import store
from scale_ray.cli.sweep import sweep
from scale_ray.cli.ui import ui
from scale_ray.config import RENAMED, flag_of
from scale_ray.console import show, show_traceback
from scale_ray.errors import RunFailed, Terminated, UserError
from scale_ray.files.failures import one_line


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="scale-ray")
@click.option("--job", is_flag=True, hidden=True, help="Run as a job that a command elsewhere follows.")
@click.pass_context
def cli(context: click.Context, job: bool) -> None:
    """One good vector per video: frozen backbone features of a few clips, aggregated by a small
    self-supervised transformer (SCALE, ICCV 2023), on Ray.

    \b
    scale-ray demo                                             try everything on sample videos
    scale-ray extract VIDEOS --store DIR --backbone r3d_18     videos to features
    scale-ray pretrain --store DIR --run NAME                  features to aggregator
    scale-ray probe --store DIR --checkpoint NAME              quality of the representation
    """
    if job:
        from scale_ray.distributed.job_versions import compare_versions

        context.obj = {"job": True, "marked": True}
        compare_versions()


for subcommand in (
    demo,
    inspect,
    backbones,
    extract,
    store,
    join,
    pretrain,
    probe,
    sweep,
    embed,
    neighbours,
    export,
    pipeline,
    ui,
):
    cli.add_command(subcommand)


def _message_of(error: Exception) -> str:
    if isinstance(error, click.NoSuchOption):
        new = RENAMED.get(error.option_name.lstrip("-").replace("-", "_"))
        return f"{error.option_name} is now called {flag_of(new)}" if new else error.format_message()
    return error.format_message() if isinstance(error, click.ClickException) else str(error)


def _terminated(_signal: int, _frame: object) -> None:
    raise Terminated


def main(arguments: Sequence[str] | None = None, *, job: bool = False) -> None:
    """Run a command and end the process; `job` is for `jobs/`, where paths must be absolute."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.excepthook = show_traceback
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = cli.main(arguments, prog_name="scale-ray", standalone_mode=False, obj={"job": job})
    except click.exceptions.NoArgsIsHelpError as error:
        show(error.format_message())
        code = 2
    except (UserError, RunFailed, click.ClickException, OSError) as error:
        if "--debug" in arguments:
            raise
        failure = one_line(error) if isinstance(error, OSError) else error
        show("Error: " + " ".join(_message_of(failure).split()), error=True)
        code = 1 if isinstance(failure, RunFailed) else 2
    except (click.Abort, KeyboardInterrupt) as error:
        show("Stopped. Committed results are kept; the same command resumes from there.", error=True)
        code = 143 if isinstance(error, Terminated) else 130
    sys.exit(code if isinstance(code, int) else 0)
