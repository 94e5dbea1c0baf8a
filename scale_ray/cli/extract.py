"""The command `extract`."""

from __future__ import annotations

from dataclasses import asdict

import click

from scale_ray.cli.options import Caller, command, store_option
from scale_ray.config import (
    BackboneOptions,
    Cluster,
    CorpusOptions,
    Extraction,
    Sampling,
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
    from scale_ray.stages.extract import extract as run_extract

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
