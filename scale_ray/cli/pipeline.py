"""The command `pipeline`: the stages one after the other."""

from __future__ import annotations

import time
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
    from scale_ray.stages.extract import extract
    from scale_ray.stages.pretrain import pretrain
    from scale_ray.stages.probe import picture_of, probe

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
