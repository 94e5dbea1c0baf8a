"""What came out, for people: the table in a file and in MLflow, and the picture."""

from __future__ import annotations

import json
from dataclasses import asdict

from scale_ray.aggregator import Aggregator
from scale_ray.config import Probing, Tracking
from scale_ray.evaluation import NUM_REPRESENTATIONS, ProbeTable, probe_table, require_width
from scale_ray.locations import absolute, exists, is_uri, join, written_whole
from scale_ray.plots import results_picture
from scale_ray.progress import Progress
from scale_ray.runs import RunFolder, aggregator_of
from scale_ray.store import FeatureStore
from scale_ray.tracking import Experiment


def probe(
    store: str,
    checkpoint: str,
    runs: str,
    *,
    probing: Probing,
    tracking: Tracking,
    quiet: bool = False,
) -> ProbeTable:
    """Probe an aggregator on a store's labelled videos beside the baselines, and record what came out.

    Where the checkpoint is a run of ours, table and picture are put into its folder.

    Raises
    ------
    UserError
        Where store, checkpoint and labels do not go together.
    """
    features_store = FeatureStore(store)
    location = aggregator_of(checkpoint, runs)
    aggregator = Aggregator.load(location)
    require_width(features_store, aggregator)
    with Progress("probe", NUM_REPRESENTATIONS, "representations", quiet=quiet) as progress:
        table = probe_table(features_store, aggregator, probing, progress.to)
    text = "\n".join(table.lines()) + "\n"
    name = checkpoint.rstrip("/").rpartition("/")[2]
    folder = _folder_of(location)
    if folder is not None:
        for file_name, content in (
            ("probe.txt", text.encode()),
            ("results.png", results_picture(table, folder.history())),
        ):
            with written_whole(join(folder.location, file_name)) as file:
                file.write(content)
    options = {"probing": probing.to_dict(), "store": features_store.location, "checkpoint": location}
    with Experiment(tracking, runs).start(f"probe of {name}", options) as record:
        for row in table.rows:
            measured = row.representation.replace("'", "").replace(" ", "_")
            record.metrics({f"{measured}.knn_top1": row.knn_top1, f"{measured}.linear_top1": row.linear_top1})
        record.text(text, "probe.txt")
        record.text(json.dumps(asdict(table), indent=2), "probe.json")
        if folder is not None and not is_uri(folder.location):
            record.file(picture_of(folder))
    return table


def picture_of(folder: RunFolder) -> str:
    return join(folder.location, "results.png")


def _folder_of(aggregator: str) -> RunFolder | None:
    """The run's folder around an aggregator's, if it is one."""
    run = absolute(aggregator).rpartition("/")[0]
    runs, _, name = run.rpartition("/")
    return RunFolder(runs, name) if exists(join(run, "history.parquet")) else None
