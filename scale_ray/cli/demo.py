"""The command `demo`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command
from scale_ray.cli.submission import LOCATION
from scale_ray.config import DEMO, DEMO_VIDEOS_PER_CLASS, DemoConfig


@click.command()
@click.option(
    "--folder",
    default="scale-ray-demo",
    type=LOCATION,
    show_default=True,
    metavar="DIR",
    help="Folder for videos, features, runs and pictures.",
)
@click.option(
    "--videos-per-class",
    default=DEMO_VIDEOS_PER_CLASS,
    show_default=True,
    type=click.IntRange(5, 1000),
    help="Sample videos of each of the 4 motions.",
)
@click.option(
    "--epochs",
    default=DEMO.training.epochs,
    show_default=True,
    type=click.IntRange(1),
    help="Passes over the videos in pretraining.",
)
@command(DemoConfig)
def demo(caller: Caller, folder: str, videos_per_class: int, epochs: int, config: DemoConfig) -> int:
    """Make sample videos and run extract, pretrain and probe on them."""
    from scale_ray.stages.demo import demo as run_demo

    caller.print_result(run_demo(folder, videos_per_class, epochs, config=config, console=caller.console))
    return 0
