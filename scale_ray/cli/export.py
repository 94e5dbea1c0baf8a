"""The command `export`."""

from __future__ import annotations

import tempfile

import click

from scale_ray.cli.options import Caller, checkpoint_option, command, runs_option
from scale_ray.config import (
    BackboneSource,
    Representing,
    Tracking,
)
from scale_ray.errors import UserError


@click.command()
@checkpoint_option
@runs_option
@click.option("--out", required=True, metavar="DIR", help="Folder for the model.")
@command(Representing, BackboneSource, Tracking)
def export(
    caller: Caller,
    checkpoint: str,
    runs: str,
    out: str,
    representing: Representing,
    source: BackboneSource,
    tracking: Tracking,
) -> int:
    """Backbone, aggregator and sampling as one MLflow model: paths of videos in, vectors out.

    `mlflow models serve -m DIR --env-manager local` answers over HTTP on this machine. With --register it
    also becomes a version of a model in MLflow.
    """
    import os

    from scale_ray.aggregator.model import Aggregator
    from scale_ray.embedding.video_model import VideoModel
    from scale_ray.locations import absolute
    from scale_ray.tracking.mlflow import Experiment, save_video_model
    from scale_ray.tracking.run_folder import aggregator_of

    location = aggregator_of(checkpoint, caller.place("--runs", runs))
    if os.path.exists(out) and os.listdir(out):
        raise UserError(f"--out: expected an empty folder or none, found files at {out}")
    model = VideoModel.of(Aggregator.load(location), representing, source.weights_at)
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "scale_ray_model")
        model.save(data)
        save_video_model(absolute(out), data)
    if tracking.register is not None:
        options = {"checkpoint": location, "representing": representing.to_dict()}
        with Experiment(tracking, runs).start(f"export of {checkpoint}", options) as record:
            record.model(absolute(out), tracking.register)
    caller.answer(
        [f"model: {out}", f"serve it: mlflow models serve -m {out} --env-manager local --host 127.0.0.1 --port 5001"],
        {"model": absolute(out), "registered": tracking.register},
    )
    return 0
