"""The stages one after the other: on videos of the user's, or on sample videos."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from scale_ray.cli.options import Caller, command, run_option, runs_option, store_option
from scale_ray.config import (
    AggregatorOptions,
    BackboneOptions,
    Cluster,
    CorpusOptions,
    Extraction,
    Ingest,
    ObjectiveOptions,
    PretrainConfig,
    Probing,
    Representing,
    Sampling,
    Sets,
    Splits,
    Tracking,
    Training,
)
from scale_ray.errors import RunFailed, UserError

# A light backbone and a small, short training: the demo shall take minutes on two cores.
DEMO_BACKBONE = BackboneOptions(backbone="shufflenet_v2_x0_5", input_px=96)
DEMO_PRETRAINING = PretrainConfig(
    objective=ObjectiveOptions(prediction_hidden=512, target_hidden=512),
    training=Training(epochs=200, batch=32, checkpoint_epochs=50),
)
DEMO_VIDEOS_PER_CLASS = 40


@click.command()
@click.argument("videos")
@store_option
@run_option()
@runs_option
@command(
    CorpusOptions,
    Sampling,
    BackboneOptions,
    Extraction,
    Splits,
    Sets,
    AggregatorOptions,
    ObjectiveOptions,
    Training,
    Ingest,
    Probing,
    Tracking,
    Cluster,
)
def pipeline(
    caller: Caller,
    videos: str,
    store: str,
    run: str,
    runs: str,
    corpus: CorpusOptions,
    sampling: Sampling,
    backbone: BackboneOptions,
    extraction: Extraction,
    splits: Splits,
    sets: Sets,
    aggregator: AggregatorOptions,
    objective: ObjectiveOptions,
    training: Training,
    ingest: Ingest,
    probing: Probing,
    tracking: Tracking,
    cluster: Cluster,
) -> int:
    """extract, pretrain and probe, in one call: from VIDEOS to the table."""
    lines, values = run_pipeline(
        caller,
        caller.place("VIDEOS", videos),
        caller.place("--store", store),
        run,
        caller.place("--runs", runs),
        corpus=corpus,
        sampling=sampling,
        backbone=backbone,
        extraction=extraction,
        config=PretrainConfig(sets, aggregator, objective, training, ingest, splits),
        probing=probing,
        tracking=tracking,
        cluster=cluster,
    )
    caller.answer(lines, values)
    return 0


def run_pipeline(
    caller: Caller,
    videos: str,
    store: str,
    run: str,
    runs: str,
    *,
    corpus: CorpusOptions,
    sampling: Sampling,
    backbone: BackboneOptions,
    extraction: Extraction,
    config: PretrainConfig,
    probing: Probing,
    tracking: Tracking,
    cluster: Cluster,
) -> tuple[list[str], dict[str, Any]]:
    """The three stages on one Ray; the table and how long each stage took, as lines and as values."""
    from scale_ray.distributed.cluster import connected
    from scale_ray.distributed.extract import extract
    from scale_ray.distributed.pretrain import pretrain
    from scale_ray.reporting import picture_of, probe

    if len(backbone.each()) > 1:
        raise UserError(f"backbone: expected one for a pipeline, found {backbone.backbone}")
    took_s: dict[str, float] = {}

    def stage(name: str) -> None:
        took_s[name] = time.monotonic()
        caller.say(f"\n[{len(took_s)}/3] {name}")

    with connected(cluster, verbose=caller.verbose):
        stage("extract")
        [summary] = extract(
            videos,
            store,
            corpus=corpus,
            sampling=sampling,
            backbone=backbone,
            extraction=extraction,
            cluster=cluster,
            say=caller.say,
            quiet=caller.quiet,
            verbose=caller.verbose,
        )
        for line in summary.lines():
            caller.say(line)
        if summary.failed_share > extraction.max_failed_share:
            raise RunFailed(
                f"{summary.failed_share:.1%} of the videos failed, more than --max-failed-share "
                f"{extraction.max_failed_share:.1%}"
            )
        stage("pretrain")
        folder = pretrain(
            store,
            run,
            runs,
            config=config,
            tracking=tracking,
            cluster=cluster,
            say=caller.say,
            quiet=caller.quiet,
            verbose=caller.verbose,
        )
        stage("probe")
        [table], _ = probe(
            store,
            run,
            runs,
            probing=probing,
            representing=Representing(),
            splits=config.splits,
            ingest=config.ingest,
            tracking=tracking,
            quiet=caller.quiet,
        )
    ends = [*list(took_s.values())[1:], time.monotonic()]
    times_s = {name: round(end - began, 1) for (name, began), end in zip(took_s.items(), ends, strict=True)}
    picture = picture_of(folder)
    lines = [
        "",
        *table.lines(),
        "",
        "took " + ", ".join(f"{name} {value} s" for name, value in times_s.items()),
        f"picture: {picture}",
    ]
    return lines, {"table": table.values(), "seconds": times_s, "picture": picture, "aggregator": folder.aggregator}


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
    from scale_ray.progress import Progress
    from scale_ray.samples import BROKEN, MOTIONS, make_samples
    from scale_ray.tracking import tracking_uri, without_password

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
