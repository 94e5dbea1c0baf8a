"""What came out, for people: tables and pictures in files and in MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from scale_ray.aggregator import Aggregator
from scale_ray.config import Ingest, Probing, Representing, Splits, Tracking
from scale_ray.evaluation import (
    BACKBONE_ALONE,
    TRAINED_AGGREGATOR,
    Pictured,
    num_representations,
    probe_table,
    require_width,
)
from scale_ray.locations import absolute, exists, join, written_whole
from scale_ray.plots import Tile, classes_picture, confusion_picture, contact_sheet, map_picture, results_picture
from scale_ray.progress import Progress
from scale_ray.runs import RunFolder, aggregator_of
from scale_ray.seen import notes_on
from scale_ray.splits import hash_share
from scale_ray.store import FeatureStore
from scale_ray.tables import ProbeTable, mean_table
from scale_ray.targets import CLASSES, NUMBERS
from scale_ray.thumbnails import thumbnails
from scale_ray.tracking import Experiment

ALL_SPLITS = "all"
_QUERIES_SHOWN, _NEIGHBOURS_SHOWN = 6, 6


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


def _metrics(tables: list[ProbeTable]) -> dict[str, float]:
    """Every estimate with its interval, under names that MLflow takes."""
    metrics: dict[str, float] = {}
    for table in tables:
        prefix = f"{_plain(table.split)}." if len(tables) > 1 else ""
        rows = [(_plain(row.representation), row.measures) for row in table.rows]
        for row, measures in [*rows, ("gain_over_backbone", table.gains)]:
            for name, of in measures.items():
                metrics |= {f"{prefix}{row}.{name}": of.value}
                metrics |= {f"{prefix}{row}.{name}.low": of.low, f"{prefix}{row}.{name}.high": of.high}
    return metrics


def _texts(tables: list[ProbeTable]) -> dict[str, bytes]:
    """The tables as text, Markdown, CSV and JSON; of several splits one after the other."""
    heads = [f"split {table.split}\n" if len(tables) > 1 else "" for table in tables]
    text = "\n".join(head + "\n".join(table.lines()) + "\n" for head, table in zip(heads, tables, strict=True))
    markdown = "\n".join(head + "\n" * bool(head) + of.markdown() for head, of in zip(heads, tables, strict=True))
    first, *others = (table.csv() for table in tables)
    values = tables[0].values() if len(tables) == 1 else {"splits": [table.values() for table in tables]}
    return {
        "table.txt": text.encode(),
        "table.md": markdown.encode(),
        "table.csv": "".join([first, *(other.partition("\n")[2] for other in others)]).encode(),
        "table.json": json.dumps(values, indent=2).encode(),
    }


def _pictures(
    table: ProbeTable, pictured: Pictured, store: FeatureStore, history: list[dict[str, float]] | None
) -> Iterator[tuple[str, bytes]]:
    yield "results", results_picture(table, history)
    sides = pictured.sides
    if sides.targets.kind == CLASSES:
        true, names = sides.test.targets.numpy(), sides.targets.names
        if pictured.predictions:
            predicted = {name: of.numpy() for name, of in pictured.predictions.items()}
            told = f"Linear probe {TRAINED_AGGREGATOR}"
            yield "confusion", confusion_picture(names, true, predicted[TRAINED_AGGREGATOR], told)
            yield "classes", classes_picture(names, true, predicted, TRAINED_AGGREGATOR, BACKBONE_ALONE)
        vectors = {n: pictured.test_vectors[n].numpy() for n in (BACKBONE_ALONE, TRAINED_AGGREGATOR)}
        if len(true) > 3:
            yield "map", map_picture(vectors, true, names)
    if sides.targets.kind != NUMBERS:
        yield "neighbours", _neighbours_picture(pictured, store)


def _neighbours_picture(pictured: Pictured, store: FeatureStore) -> bytes:
    """Some test videos, drawn by their ids and of different classes where there are any, and their nearest."""
    sides = pictured.sides
    train, test, targets = sides.train, sides.test, sides.targets
    bank = pictured.train_vectors[TRAINED_AGGREGATOR]
    queries = pictured.test_vectors[TRAINED_AGGREGATOR]
    order = sorted(range(len(test)), key=lambda row: hash_share(f"shown\0{test.video_ids[row]}"))
    first_of: dict[str, int] = {}
    for row in order:
        first_of.setdefault(str(targets.of[test.video_ids[row]]), row)
    chosen = [*first_of.values(), *(row for row in order if row not in first_of.values())][:_QUERIES_SHOWN]
    cosine, nearest = (queries[chosen] @ bank.T).topk(min(_NEIGHBOURS_SHOWN, len(bank)), dim=1)
    shared = targets.dense(test.targets)[chosen] @ targets.dense(train.targets).T > 0
    ids = [test.video_ids[row] for row in chosen] + [train.video_ids[row] for row in nearest.flatten().tolist()]
    frames = frames_of(store, ids)
    rows = []
    for place, row in enumerate(chosen):
        query = test.video_ids[row]
        tiles = [Tile(frames[query], f"query\n{_told(targets.of[query])}")]
        for near, of in zip(nearest[place].tolist(), cosine[place].tolist(), strict=True):
            video_id = train.video_ids[near]
            caption = f"{of:.2f}\n{_told(targets.of[video_id])}"
            tiles.append(Tile(frames[video_id], caption, bool(shared[place, near])))
        rows.append(tiles)
    return contact_sheet(rows, "Test videos and their nearest training videos, with cosine; green: shares the label")


def frames_of(store: FeatureStore, video_ids: list[str]) -> dict[str, np.ndarray | None]:
    """A frame of each of some videos of a store; None where the file is not there any more or cannot be read."""
    videos = store.videos()
    paths = dict(zip(videos["video_id"].to_pylist(), videos["path"].to_pylist(), strict=True))
    wanted = list(dict.fromkeys(video_ids))
    return dict(zip(wanted, thumbnails([paths[video_id] for video_id in wanted]), strict=True))


def _told(target: object) -> str:
    text = ", ".join(map(str, target)) if isinstance(target, list) else str(target)
    return text if len(text) <= 24 else text[:23] + "…"


def _plain(name: str) -> str:
    """A name as MLflow and file systems take it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("'", ""))


def _folder_of(aggregator: str) -> RunFolder | None:
    """The run's folder around an aggregator's, if it is one."""
    run = absolute(aggregator).rpartition("/")[0]
    runs, _, name = run.rpartition("/")
    return RunFolder(runs, name) if exists(join(run, "history.parquet")) else None
