"""The command `demo`: the stages on sample videos."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import click

from scale_ray.cli.options import Caller, command
from scale_ray.cli.pipeline import run_pipeline
from scale_ray.config import (
    BackboneOptions,
    Cluster,
    CorpusOptions,
    Extraction,
    ObjectiveOptions,
    PretrainConfig,
    Probing,
    Sampling,
    Tracking,
    Training,
)
from scale_ray.errors import UserError

# A light backbone and a small, short training: the demo shall take minutes on two cores.
DEMO_BACKBONE = BackboneOptions(backbone="shufflenet_v2_x0_5", input_px=96)
DEMO_PRETRAINING = PretrainConfig(
    objective=ObjectiveOptions(prediction_hidden=512, target_hidden=512),
    training=Training(epochs=200, batch=32, checkpoint_epochs=50),
)
DEMO_VIDEOS_PER_CLASS = 40


def _own_command() -> str:
    """How this program is called from here: by name where its environment is activated."""
    beside = os.path.join(os.path.dirname(sys.executable), "scale-ray")
    if shutil.which("scale-ray") or not os.path.exists(beside):
        return "scale-ray"
    return os.path.relpath(beside)


@click.command()
@click.option(
    "--folder",
    default="scale-ray-demo",
    show_default=True,
    metavar="DIR",
    help="Where videos, features, runs and picture go.",
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
    default=DEMO_PRETRAINING.training.epochs,
    show_default=True,
    type=click.IntRange(1),
    help="Passes over the videos in pretraining.",
)
@command(Tracking, Cluster)
def demo(caller: Caller, folder: str, videos_per_class: int, epochs: int, tracking: Tracking, cluster: Cluster) -> int:
    """Make sample videos and run extract, pretrain and probe on them."""
    from scale_ray.backbones import load_backbone
    from scale_ray.console import Progress
    from scale_ray.corpus.sample_videos import BROKEN, MOTIONS, make_samples
    from scale_ray.tracking.mlflow import tracking_uri, without_password

    folder = os.path.abspath(caller.place("--folder", folder))
    videos, store, runs = (os.path.join(folder, name) for name in ("videos", "store", "runs"))
    total = videos_per_class * len(MOTIONS) + len(BROKEN)
    if not os.path.isdir(videos) or sum(len(files) for _, _, files in os.walk(videos)) != total:
        with Progress("sample videos", total, "files", quiet=caller.quiet) as progress:
            for count, _ in enumerate(make_samples(Path(videos), videos_per_class), 1):
                progress.to(count)
    sampling, backbone = Sampling(), DEMO_BACKBONE
    try:
        load_backbone(backbone, sampling.frames)
    except UserError:
        caller.say(
            f"Pretrained weights of {backbone.backbone} cannot be downloaded here: going on with seeded random ones."
        )
        backbone = replace(backbone, weights="none")
    config = DEMO_PRETRAINING.with_values({"training.epochs": epochs})
    lines, values = run_pipeline(
        caller,
        videos,
        store,
        "demo",
        runs,
        corpus=CorpusOptions(),
        sampling=sampling,
        backbone=backbone,
        extraction=Extraction(),
        config=config,
        probing=Probing(),
        tracking=tracking,
        cluster=cluster,
    )
    uri = without_password(tracking_uri(tracking, runs))
    opened = f"open them:   {_own_command()} ui --runs {runs}"
    caller.answer([*lines, f"MLflow runs: {uri}", opened], {**values, "tracking_uri": uri})
    return 0
