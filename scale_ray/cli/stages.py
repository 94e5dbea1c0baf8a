"""The stages as commands. Everything heavy is imported when a command runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from scale_ray.cli.options import Caller, command, run_option, runs_option, store_option, sweep_options
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
    Searching,
    Sets,
    Splits,
    Tracking,
    Training,
)


@click.command()
@click.argument("videos")
@store_option
@command(CorpusOptions, Sampling, BackboneOptions, Extraction, Cluster)
def extract(
    caller: Caller,
    videos: str,
    store: str,
    corpus: CorpusOptions,
    sampling: Sampling,
    backbone: BackboneOptions,
    extraction: Extraction,
    cluster: Cluster,
) -> int:
    """Clip features of VIDEOS into a feature store.

    VIDEOS is a folder (class per subfolder, or UCF-101, HMDB-51, Kinetics, Something-Something v2 with
    their lists), a quoted glob, or a CSV or Parquet manifest with a column `path` and, if known, `label`,
    `split`, `group`; local or a URI. What the store holds already is not read again. Of several backbones,
    --backbone A,B, each has a store in its own folder, DIR/A and DIR/B.
    """
    from scale_ray.distributed.extract import extract as run_extract

    summaries = run_extract(
        caller.place("VIDEOS", videos),
        caller.place("--store", store),
        corpus=corpus,
        sampling=sampling,
        backbone=backbone,
        extraction=extraction,
        cluster=cluster,
        say=caller.say,
        quiet=caller.quiet,
        verbose=caller.verbose,
    )
    values = [asdict(summary) for summary in summaries]
    lines = [line for summary in summaries for line in summary.lines()]
    caller.answer(lines, values[0] if len(values) == 1 else {"stores": values})
    if caller.job:
        return 1 if max(summary.failed_share for summary in summaries) > extraction.max_failed_share else 0
    if all(summary.num_done == 0 for summary in summaries):
        return 1
    return 3 if any(summary.failures for summary in summaries) else 0


@click.command()
@store_option
@run_option()
@runs_option
@command(Splits, Sets, AggregatorOptions, ObjectiveOptions, Training, Ingest, Tracking, Cluster)
def pretrain(
    caller: Caller,
    store: str,
    run: str,
    runs: str,
    splits: Splits,
    sets: Sets,
    aggregator: AggregatorOptions,
    objective: ObjectiveOptions,
    training: Training,
    ingest: Ingest,
    tracking: Tracking,
    cluster: Cluster,
) -> int:
    """Train the aggregator on a feature store, self-supervised.

    The same --run with the same options goes on where an unfinished run stopped.
    """
    from scale_ray.distributed.pretrain import pretrain as run_pretrain

    folder = run_pretrain(
        caller.place("--store", store),
        run,
        caller.place("--runs", runs),
        config=PretrainConfig(sets, aggregator, objective, training, ingest, splits),
        tracking=tracking,
        cluster=cluster,
        say=caller.say,
        quiet=caller.quiet,
        verbose=caller.verbose,
    )
    first, last = folder.history()[0], folder.history()[-1]
    names = {"loss": "loss", "set_top1": "set contrast top-1", "clip_top1": "masked clip top-1"}
    moved = [f"{told} {first[name]:.3f} -> {last[name]:.3f}" for name, told in names.items() if name in last]
    caller.answer(
        [
            f"{', '.join(moved)} over {int(last['epoch'])} epochs",
            f"aggregator: {folder.aggregator}",
        ],
        {"aggregator": folder.aggregator, "mlflow_run": folder.mlflow_run(), "last_epoch": last},
    )
    return 0


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
    from scale_ray.reporting import probe as run_probe

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


@click.command()
@store_option
@run_option("sweep")
@runs_option
@sweep_options(Sets)
@command(Splits, AggregatorOptions, ObjectiveOptions, Training, Searching, Probing, Tracking, Cluster)
def sweep(
    caller: Caller,
    store: str,
    run: str,
    runs: str,
    splits: Splits,
    aggregator: AggregatorOptions,
    objective: ObjectiveOptions,
    training: Training,
    searching: Searching,
    probing: Probing,
    tracking: Tracking,
    cluster: Cluster,
    **grid: Any,
) -> int:
    """Search mask ratio and set size; settings are ranked on held-out training videos."""
    from scale_ray.distributed.sweep import sweep as run_sweep

    result = run_sweep(
        caller.place("--store", store),
        run,
        caller.place("--runs", runs),
        {f"{Sets.section}.{name.removeprefix('grid__')}": values for name, values in grid.items() if values},
        config=PretrainConfig(Sets(), aggregator, objective, training, splits=splits),
        searching=searching,
        probing=probing,
        tracking=tracking,
        cluster=cluster,
        say=caller.say,
        quiet=caller.quiet,
        verbose=caller.verbose,
    )
    caller.answer(result.lines(), asdict(result))
    return 0
