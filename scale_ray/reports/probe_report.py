"""What came out, for people: tables and pictures in files and in MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from scale_ray.hashing import uniform_hash
from scale_ray.probes import BACKBONE_ALONE, CLASSES, NUMBERS, TRAINED_AGGREGATOR, FigureData, ProbeTable
from scale_ray.reports.contact_sheet import Tile, contact_sheet, frames_of
from scale_ray.reports.figures import classes_figure, confusion_figure, map_figure, results_figure
from scale_ray.store import FeatureStore

_QUERIES_SHOWN, _NEIGHBOURS_SHOWN = 6, 6


def report_files(
    tables: Sequence[ProbeTable],
    figures: Sequence[FigureData],
    store: FeatureStore,
    history: Sequence[Mapping[str, float]] | None,
) -> dict[str, bytes]:
    """The files of a report by name: pictures of every split, and the tables as text, Markdown, CSV and JSON.

    With several splits the last table is their mean, which has no pictures. With `history` the losses of the
    pretraining stand beside the results.
    """
    files: dict[str, bytes] = {}
    for table, data in zip(tables, figures, strict=False):
        suffix = f"-{_plain(table.split)}" if len(figures) > 1 else ""
        files |= {f"{kind}{suffix}.png": png for kind, png in _pictures(table, data, store, history)}
    return files | _texts(tables)


def probe_metrics(tables: Sequence[ProbeTable]) -> dict[str, float]:
    """Every estimate with its interval, under names that MLflow accepts."""
    values: dict[str, float] = {}
    for table in tables:
        prefix = f"{_plain(table.split)}." if len(tables) > 1 else ""
        rows = [(_plain(row.representation), row.metrics) for row in table.rows]
        for row, metrics in [*rows, ("gain_over_backbone", table.gains)]:
            for name, estimate in metrics.items():
                key = f"{prefix}{row}.{name}"
                values |= {key: estimate.value, f"{key}.low": estimate.low, f"{key}.high": estimate.high}
    return values


def _pictures(
    table: ProbeTable, pictured: FigureData, store: FeatureStore, history: Sequence[Mapping[str, float]] | None
) -> Iterator[tuple[str, bytes]]:
    yield "results", results_figure(table, history)
    sides = pictured.sides
    if sides.targets.kind == CLASSES:
        true, names = sides.test.targets.numpy(), sides.targets.names
        if pictured.predictions:
            predicted = {name: of.numpy() for name, of in pictured.predictions.items()}
            told = f"Linear probe {TRAINED_AGGREGATOR}"
            yield "confusion", confusion_figure(names, true, predicted[TRAINED_AGGREGATOR], told)
            yield "classes", classes_figure(names, true, predicted, TRAINED_AGGREGATOR, BACKBONE_ALONE)
        vectors = {n: pictured.test_vectors[n].numpy() for n in (BACKBONE_ALONE, TRAINED_AGGREGATOR)}
        if len(true) > 3:
            yield "map", map_figure(vectors, true, names)
    if sides.targets.kind != NUMBERS:
        yield "neighbours", _neighbours_picture(pictured, store)


def _texts(tables: Sequence[ProbeTable]) -> dict[str, bytes]:
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


def _neighbours_picture(pictured: FigureData, store: FeatureStore) -> bytes:
    """Some test videos, drawn by their ids and of different classes where there are any, and their nearest."""
    sides = pictured.sides
    train, test, targets = sides.train, sides.test, sides.targets
    bank = pictured.train_vectors[TRAINED_AGGREGATOR]
    queries = pictured.test_vectors[TRAINED_AGGREGATOR]
    order = sorted(range(len(test)), key=lambda row: uniform_hash(f"shown\0{test.video_ids[row]}"))
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


def _told(target: object) -> str:
    text = ", ".join(map(str, target)) if isinstance(target, list) else str(target)
    return text if len(text) <= 24 else text[:23] + "…"


def _plain(name: str) -> str:
    """A name as MLflow and file systems take it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("'", ""))
