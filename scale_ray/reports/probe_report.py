"""The report of a probe run: tables and figures as files, and metrics for MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from scale_ray.console import printable
from scale_ray.hashing import uniform_hash
from scale_ray.probes import BACKBONE_ALONE, CLASSES, NUMBERS, TRAINED_AGGREGATOR, FigureData, ProbeTable, in_markdown
from scale_ray.reports.contact_sheet import Tile, contact_sheet, frames_of
from scale_ray.reports.figures import classes_figure, confusion_figure, map_figure, results_figure
from scale_ray.store import FeatureStore

_QUERIES_SHOWN, _NEIGHBOURS_SHOWN = 6, 6


def report_tables(tables: Sequence[ProbeTable]) -> dict[str, bytes]:
    """The files of the tables by name: as text, Markdown, CSV and JSON, those of all splits in one file each."""
    heads = [f"split {table.split}" if len(tables) > 1 else "" for table in tables]
    text = "\n".join(
        "".join(f"{printable(line)}\n" for line in [*filter(None, [head]), *table.lines()])
        for head, table in zip(heads, tables, strict=True)
    )
    markdown = "\n".join(
        (f"{in_markdown(head)}\n\n" if head else "") + table.markdown()
        for head, table in zip(heads, tables, strict=True)
    )
    first, *others = (table.csv() for table in tables)
    values = tables[0].values() if len(tables) == 1 else {"splits": [table.values() for table in tables]}
    return {
        "table.txt": text.encode(),
        "table.md": markdown.encode(),
        "table.csv": "".join([first, *(other.partition("\n")[2] for other in others)]).encode(),
        "table.json": json.dumps(values, indent=2).encode(),
    }


def report_pictures(
    tables: Sequence[ProbeTable],
    figures: Sequence[FigureData],
    store: FeatureStore,
    history: Sequence[Mapping[str, float]] | None,
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The pictures of every split: the name of the PNG file, and the function that draws it.

    With several splits the last table is their mean, which has no pictures. With `history` the losses of the
    pretraining are drawn beside the results.
    """
    for table, data in zip(tables, figures, strict=False):
        suffix = f"-{_safe_name(table.split)}" if len(figures) > 1 else ""
        for name, draw in _figures(table, data, store, history):
            yield f"{name}{suffix}.png", draw


def probe_metrics(tables: Sequence[ProbeTable]) -> dict[str, float]:
    """Every estimate and its interval, by names that MLflow accepts."""
    values: dict[str, float] = {}
    for table in tables:
        prefix = f"{_safe_name(table.split)}." if len(tables) > 1 else ""
        rows = [(_safe_name(row.representation), row.metrics) for row in table.rows]
        for row, metrics in [*rows, ("gain_over_backbone", table.gains)]:
            for name, estimate in metrics.items():
                key = f"{prefix}{row}.{name}"
                values |= {key: estimate.value, f"{key}.low": estimate.low, f"{key}.high": estimate.high}
    return values


def _figures(
    table: ProbeTable, data: FigureData, store: FeatureStore, history: Sequence[Mapping[str, float]] | None
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The figures of one split that apply to its targets, by name."""
    yield "results", partial(results_figure, table, history)
    targets = data.split.targets
    if targets.kind == CLASSES:
        true, names = data.split.test.targets.numpy(), targets.names
        if data.predictions:
            predicted = {name: classes.numpy() for name, classes in data.predictions.items()}
            title = f"Which class was predicted\nlinear probe {TRAINED_AGGREGATOR}"
            yield "confusion", partial(confusion_figure, names, true, predicted[TRAINED_AGGREGATOR], title)
            yield "classes", partial(classes_figure, names, true, predicted, TRAINED_AGGREGATOR, BACKBONE_ALONE)
        vectors = {name: data.test_vectors[name].numpy() for name in (BACKBONE_ALONE, TRAINED_AGGREGATOR)}
        if len(true) > 3:
            yield "map", partial(map_figure, vectors, true, names)
    if targets.kind != NUMBERS:
        yield "neighbours", partial(_neighbours_sheet, data, store)


def _neighbours_sheet(data: FigureData, store: FeatureStore) -> bytes:
    """A contact sheet of a few test videos, of different targets as far as possible, and their nearest neighbours."""
    train, test, targets = data.split.train, data.split.test, data.split.targets
    bank, queries = data.train_vectors[TRAINED_AGGREGATOR], data.test_vectors[TRAINED_AGGREGATOR]
    query_rows = _query_rows(test.video_ids, targets.values)
    cosine, nearest = (queries[query_rows] @ bank.T).topk(min(_NEIGHBOURS_SHOWN, len(bank)), dim=1)
    shared = targets.dense(test.targets)[query_rows] @ targets.dense(train.targets).T > 0
    ids = [test.video_ids[row] for row in query_rows] + [train.video_ids[row] for row in nearest.flatten().tolist()]
    frames = frames_of(store, ids)
    sheet = []
    for index, query_row in enumerate(query_rows):
        query = test.video_ids[query_row]
        tiles = [Tile(frames[query], f"query\n{_short_text(targets.values[query])}")]
        for row, similarity in zip(nearest[index].tolist(), cosine[index].tolist(), strict=True):
            video_id = train.video_ids[row]
            caption = f"{similarity:.2f}\n{_short_text(targets.values[video_id])}"
            tiles.append(Tile(frames[video_id], caption, bool(shared[index, row])))
        sheet.append(tiles)
    return contact_sheet(sheet, "Test videos and their nearest training videos, with cosine; green frame: shared label")


def _query_rows(video_ids: Sequence[str], targets: Mapping[str, object]) -> list[int]:
    """Rows of at most `_QUERIES_SHOWN` videos, in the order of a hash of the ids: one per target, then others."""
    order = sorted(range(len(video_ids)), key=lambda row: uniform_hash(f"shown\0{video_ids[row]}"))
    first_rows: dict[str, int] = {}
    for row in order:
        first_rows.setdefault(str(targets[video_ids[row]]), row)
    return [*first_rows.values(), *(row for row in order if row not in first_rows.values())][:_QUERIES_SHOWN]


def _short_text(target: object) -> str:
    text = ", ".join(map(str, target)) if isinstance(target, list) else str(target)
    return text if len(text) <= 24 else text[:23] + "…"


def _safe_name(name: str) -> str:
    """A name without characters that MLflow or file systems reject."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("'", ""))
