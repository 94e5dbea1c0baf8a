"""A feature store and its aggregators to tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from scale_ray.aggregator import Aggregator
from scale_ray.config import ProbeConfig
from scale_ray.console import Console, Result
from scale_ray.errors import first_line
from scale_ray.files.locations import absolute, atomic_write, join
from scale_ray.pretraining import check_compatible, provenance_notes
from scale_ray.probes import FigureData, ProbeTable, mean_table, num_representations, probe_table
from scale_ray.reports import probe_metrics, report_pictures, report_tables
from scale_ray.store import FeatureStore, check_modes, num_incomplete
from scale_ray.tracking import Experiment, aggregator_of, run_folder_of

if TYPE_CHECKING:
    import pandas as pd

ALL_SPLITS = "all"


@dataclass(frozen=True)
class ProbeResult(Result):
    """A table per split, with several splits also their mean; the files of tables and pictures, and their folder."""

    tables: Sequence[ProbeTable]
    files: dict[str, bytes] = field(repr=False)
    folder: str | None = None

    def lines(self) -> list[str]:
        several = len(self.tables) > 1
        lines = [line for table in self.tables for line in ([f"split {table.split}"] * several + table.lines())]
        return [*lines, *([f"tables and pictures: {self.folder}"] if self.folder else [])]

    def values(self) -> dict[str, Any]:
        tables = [table.values() for table in self.tables]
        return {**(tables[0] if len(tables) == 1 else {"splits": tables}), "folder": self.folder}

    def to_pandas(self) -> pd.DataFrame:
        """A row per split, representation and metric: `value`, and `low` and `high` of the 95 % interval."""
        import pandas as pd

        return pd.concat([table.to_pandas() for table in self.tables], ignore_index=True)

    def pictures(self) -> list[bytes]:
        return [png for name, png in self.files.items() if name.startswith("results") and name.endswith(".png")]


def probe(
    store: str, checkpoint: str, *, runs: str = "runs", out: str | None = None, config: ProbeConfig, console: Console
) -> ProbeResult:
    """Probe aggregators on a store's labelled videos, beside the baselines, and record the results.

    `checkpoint` names one aggregator, or several separated by commas: one per seed. Tables and pictures are written
    to `out`; without it to `probe/` in the folder of the first checkpoint, if that is a run.

    Raises
    ------
    UserError
        If store, checkpoints and targets do not fit together.
    """
    return probe_below(None, store, checkpoint, runs=runs, out=out, config=config, console=console)


def probe_below(
    parent: str | None,
    store: str,
    checkpoint: str,
    *,
    runs: str,
    config: ProbeConfig,
    console: Console,
    out: str | None = None,
) -> ProbeResult:
    """As `probe`; with the id of a `parent`, the MLflow run is a child of that one."""
    features = FeatureStore(store)
    check_modes(features, "probe_mode", config.probing.probe_mode)
    names = [name for name in checkpoint.split(",") if name]
    locations = [aggregator_of(name, runs) for name in names]
    aggregators = [Aggregator.load(location) for location in locations]
    for aggregator in aggregators:
        check_compatible(features, aggregator)
    run = run_folder_of(locations[0])
    # Before the work: results that MLflow could not take would be recorded nowhere if they have no folder.
    experiment = Experiment(config.tracking, runs, console)
    tables, figures = _probed(features, aggregators, config, console)
    folder = absolute(out) if out else join(run.location, "probe") if run else None
    files = report_tables(tables)
    _write(files, folder)
    history = run.history() if run and len(aggregators) == 1 else None
    # After the tables are written: a picture that cannot be drawn costs nothing else.
    pictures = dict(_drawn(report_pictures(tables, figures, features, history), console))
    _write(pictures, folder)
    files |= pictures
    described = {**config.to_dict(), "store": features.location, "checkpoint": ",".join(locations)}
    titles = ", ".join(name.rstrip("/").rpartition("/")[2] for name in names)
    also_in = f"{folder} has all tables and pictures" if folder else None
    with experiment.start_later(f"probe of {titles}", described, below=parent, also_in=also_in) as record:
        record.metrics(probe_metrics(tables))
        for name, content in files.items():
            record.content(content, name)
    return ProbeResult(tables, files, folder)


def _write(files: Mapping[str, bytes], folder: str | None) -> None:
    if folder is not None:
        for name, content in files.items():
            with atomic_write(join(folder, name)) as file:
                file.write(content)


def _drawn(pictures: Iterable[tuple[str, Callable[[], bytes]]], console: Console) -> Iterator[tuple[str, bytes]]:
    """The pictures by name, without those that cannot be drawn, which are reported."""
    for name, draw in pictures:
        try:
            png = draw()
        except Exception as error:  # noqa: BLE001 - whatever it is, the results stay
            console.say(f"{name} could not be drawn: {type(error).__name__}: {first_line(error)}")
        else:
            yield name, png


def _probed(
    store: FeatureStore, aggregators: Sequence[Aggregator], config: ProbeConfig, console: Console
) -> tuple[list[ProbeTable], list[FigureData]]:
    """The table and what the pictures show of every split that was asked for; of several also the mean table."""
    split = config.splits.split
    splits = store.split_names() if split == ALL_SPLITS else [split]
    per_split = num_representations(config.probing, len(aggregators))
    tables: list[ProbeTable] = []
    figures: list[FigureData] = []
    with console.progress("probe", per_split * len(splits), "representations") as progress:
        for number, name in enumerate(splits):

            def show(count: int, representation: str, done: int = number * per_split) -> None:
                progress.to(done + count, representation)

            table, figure_data = probe_table(
                store,
                aggregators,
                config.probing,
                split=name,
                representing=config.representing,
                ingest=config.ingest,
                progress=show,
            )
            notes = [note for model in aggregators for note in provenance_notes(model.trained_on, store, table.split)]
            notes += _mode_notes(store, config.probing.probe_mode, table.split)
            tables.append(replace(table, notes=list(dict.fromkeys(notes))))
            figures.append(figure_data)
    if len(tables) > 1:
        tables.append(mean_table(tables))
    return tables, figures


def _mode_notes(store: FeatureStore, mode: str, split: str) -> list[str]:
    """Notes about the clips that probes were fitted on; none for those of mode `train`."""
    if mode == "train":
        return []
    ids = [video_id for video_id, subset in store.splits(split).items() if subset in ("train", "validation")]
    left_out = num_incomplete(store, mode, ids)
    more = f"; {left_out} training videos lack {mode.replace('+', ' or ')} clips and are left out" * bool(left_out)
    return [f"the probes were fitted on {mode} clips{more}"]
