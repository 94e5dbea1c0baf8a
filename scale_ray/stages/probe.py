"""Store and aggregators to tables and pictures."""

from __future__ import annotations

from dataclasses import replace

from scale_ray.aggregator.model import Aggregator
from scale_ray.config import Ingest, Probing, Representing, Splits, Tracking
from scale_ray.console import Progress
from scale_ray.locations import absolute, exists, join, written_whole
from scale_ray.pretraining.provenance import notes_on, require_width
from scale_ray.probes.evaluation import num_representations, probe_table
from scale_ray.probes.table import ProbeTable, mean_table
from scale_ray.reports.probe_report import (
    _metrics,
    _pictures,
    _plain,
    _texts,
)
from scale_ray.store.feature_store import FeatureStore
from scale_ray.tracking.mlflow import Experiment
from scale_ray.tracking.run_folder import RunFolder, aggregator_of

ALL_SPLITS = "all"


def probe(
    store: str,
    checkpoint: str,
    runs: str,
    *,
    probing: Probing,
    representing: Representing,
    splits: Splits,
    ingest: Ingest,
    tracking: Tracking,
    out: str | None = None,
    quiet: bool = False,
) -> tuple[list[ProbeTable], str | None]:
    """Probe aggregators on a store's labelled videos beside the baselines, and record what came out.

    `checkpoint` names one aggregator or several by commas: one a seed. Tables and pictures are put into `out`;
    without it into `probe/` in the folder of the first checkpoint, where that is a run of ours. Returns a
    table for each split, of several also their mean, and the folder.

    Raises
    ------
    UserError
        Where store, checkpoints and targets do not go together.
    """
    features_store = FeatureStore(store)
    locations = [aggregator_of(name, runs) for name in checkpoint.split(",") if name]
    aggregators = [Aggregator.load(location) for location in locations]
    for aggregator in aggregators:
        require_width(features_store, aggregator)
    names = features_store.split_names() if splits.split == ALL_SPLITS else [splits.split]
    run = _folder_of(locations[0])
    folder = absolute(out) if out else join(run.location, "probe") if run else None
    total = num_representations(probing, len(aggregators)) * len(names)
    tables: list[ProbeTable] = []
    files: dict[str, bytes] = {}
    with Progress("probe", total, "representations", quiet=quiet) as progress:
        for number, name in enumerate(names):

            def told(count: int, of: str, number: int = number) -> None:
                progress.to(number * total // len(names) + count, of)

            table, pictured = probe_table(
                features_store,
                aggregators,
                probing,
                split=name,
                ensemble=representing.ensemble,
                ingest=ingest,
                progress=told,
            )
            notes = [note for one in aggregators for note in notes_on(one.trained_on, features_store, table.split)]
            table = replace(table, notes=list(dict.fromkeys(notes)))
            tables.append(table)
            history = run.history() if run and len(aggregators) == 1 else None
            suffix = f"-{_plain(table.split)}" if len(names) > 1 else ""
            files |= {f"{kind}{suffix}.png": png for kind, png in _pictures(table, pictured, features_store, history)}
    if len(tables) > 1:
        tables.append(mean_table(tables))
    files |= _texts(tables)
    if folder is not None:
        for name, content in files.items():
            with written_whole(join(folder, name)) as file:
                file.write(content)
    options = {"probing": probing.to_dict(), "representing": representing.to_dict(), "splits": splits.to_dict()}
    described = {**options, "store": features_store.location, "checkpoint": ",".join(locations)}
    told_of = ", ".join(name.rstrip("/").rpartition("/")[2] for name in checkpoint.split(",") if name)
    with Experiment(tracking, runs).start(f"probe of {told_of}", described) as record:
        record.metrics(_metrics(tables))
        for name, content in files.items():
            record.content(content, name)
    return tables, folder


def picture_of(folder: RunFolder) -> str:
    return join(folder.location, "probe", "results.png")


def _folder_of(aggregator: str) -> RunFolder | None:
    """The run's folder around an aggregator's, if it is one."""
    run = absolute(aggregator).rpartition("/")[0]
    runs, _, name = run.rpartition("/")
    return RunFolder(runs, name) if exists(join(run, "history.parquet")) else None
