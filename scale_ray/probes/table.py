"""The table of the probes: as text, Markdown, CSV and plain values."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

from scale_ray.config import PROBES
from scale_ray.console import printable
from scale_ray.probes.bootstrap import Estimate
from scale_ray.probes.targets import CLASSES, MULTILABEL

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS_PER_BLOCK = 5
_METRIC_TITLES = {"top1": "top-1", "map": "mAP", "mse": "MSE"}
_VARIANTS = ("knn_k", "retrieval_recall_at_5", "retrieval_recall_at_10", "clustering_v_measure")
_GAIN = "gain over the feature alone"
_PROBE_TITLES = {"knn": "k-NN", "mlp": "MLP"}


@dataclass(frozen=True)
class ProbeRow:
    """One representation: the estimate of every metric, by the name of the metric."""

    representation: str
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class ProbeTable:
    """The results of the probes of one split.

    `gains` are the improvements of the trained aggregator over the backbone's feature alone, by metric (for errors,
    the decrease). `chance` is the metric reached without seeing a video. `num_aggregators` of separate pretrainings are
    divided among the `num_seeds` seeds. `notes` are printed below the table. `token_weights` are the weights that were
    chosen among the training videos, by representation and seed, if several were tried.
    """

    rows: list[ProbeRow]
    gains: dict[str, Estimate]
    chance: float
    kind: str
    split: str
    num_train_videos: int
    num_test_videos: int
    num_test_groups: int
    num_classes: int
    num_seeds: int
    notes: list[str] = field(default_factory=list)
    num_aggregators: int = 1
    token_weights: dict[str, list[float]] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Plain values that can be written as JSON."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """One row per representation and metric: `value`, and `low` and `high` of the 95 % interval."""
        import pandas as pd

        rows = [
            {"split": self.split, "representation": row.representation, "metric": name}
            | {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            for row in [*self.rows, ProbeRow(_GAIN, self.gains)]
            for name, estimate in row.metrics.items()
        ]
        return pd.DataFrame(rows)

    def metric_names(self, *, main: bool = False) -> list[str]:
        """Names of the metrics that any row has, in the order of the probes; with `main` without the variants."""
        names = dict.fromkeys(name for row in self.rows for name in row.metrics)
        kept = [name for name in names if not main or not name.startswith(_VARIANTS)]
        return sorted(kept, key=lambda name: PROBES.index(name.partition("_")[0]))

    def lines(self) -> list[str]:
        """The table as lines of text, without variants of metrics; in several blocks if it is wide."""
        names = self.metric_names(main=True)
        lines: list[str] = []
        for start in range(0, len(names), _COLUMNS_PER_BLOCK):
            block = names[start : start + _COLUMNS_PER_BLOCK]
            widths = [max(len(title_of(name)), 12) + 2 for name in block]
            titles = "".join(f"{title_of(name):>{width}}" for name, width in zip(block, widths, strict=True))
            head = f"{'representation':<37}{titles}"
            lines += ["", head, "-" * len(head)] if start else [head, "-" * len(head)]
            for row in [*self.rows, ProbeRow(_GAIN, self.gains)]:
                sign = "+" if row.representation == _GAIN else ""
                cells = [_cell(name, row.metrics.get(name), sign) for name in block]
                values = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
                lines.append(f"{row.representation:<37}{values}")
        return [*lines, *self.footnotes()]

    def markdown(self) -> str:
        """The table in Markdown, with every metric and its interval."""
        names = self.metric_names()
        lines = [
            "| representation | " + " | ".join(map(title_of, names)) + " |",
            "| --- |" + " --- |" * len(names),
            *(
                f"| {in_markdown(row.representation)} | "
                + " | ".join(_interval(n, row.metrics[n]) if n in row.metrics else "" for n in names)
                + " |"
                for row in self.rows
            ),
            f"| *{_GAIN}* | "
            + " | ".join(_interval(n, self.gains[n], sign="+") if n in self.gains else "" for n in names)
            + " |",
        ]
        return "\n".join([*lines, "", *map(in_markdown, self.footnotes())]) + "\n"

    def csv(self) -> str:
        """One line per representation and metric: value, interval, and the value of each seed."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["split", "representation", "metric", "value", "low", "high", "seeds"])
        gains = ProbeRow(_GAIN, self.gains)
        for row in [*self.rows, gains]:
            for name, estimate in row.metrics.items():
                values = [f"{value:.6g}" for value in (estimate.value, estimate.low, estimate.high)]
                seeds = " ".join(f"{value:.6g}" for value in estimate.each)
                writer.writerow([self.split, row.representation, name, *values, seeds])
        return out.getvalue()

    def footnotes(self) -> list[str]:
        """Lines below the table: numbers of videos, chance, how the intervals were computed, notes."""
        chance = {
            CLASSES: f"{self.num_classes} classes; always the most frequent class: {self.chance:.3f}",
            MULTILABEL: f"{self.num_classes} labels; equal scores: mAP {self.chance:.3f}",
        }.get(self.kind, f"numbers; always the training mean: MSE {self.chance:.4g}")
        groups = f" in {self.num_test_groups} groups" if self.num_test_groups < self.num_test_videos else ""
        seeds = "1 seed" if self.num_seeds == 1 else f"{self.num_seeds} seeds"
        return [
            f"{self.num_train_videos} training and {self.num_test_videos} test videos{groups}, {chance}",
            f"{seeds}; ±: half of the 95 % interval, by bootstrap over the test {'groups' if groups else 'videos'}"
            + (" and the seeds" if self.num_seeds > 1 else ""),
            self._covered(f"test {'groups' if groups else 'videos'}"),
            *(
                f"token weight {name}, chosen among the training videos: {', '.join(f'{w:g}' for w in weights)}"
                for name, weights in self.token_weights.items()
            ),
            *self.notes,
        ]

    def _covered(self, units: str) -> str:
        """What the intervals cover: the choice of the test videos, and of the seeds if there are several."""
        if self.num_test_groups == 1:
            return "only one test group: all draws are equal, so intervals mean nothing"
        if self.num_seeds == 1:
            return f"the intervals cover the {units} only, not what another seed would change"
        if self.num_aggregators == 1:
            return f"the intervals cover the {units} and the seeds of the probes, not those of the pretraining"
        return f"the intervals cover the {units} and the seeds, of pretraining and probes"


def mean_table(tables: Sequence[ProbeTable]) -> ProbeTable:
    """The mean over several official splits, of the metrics that all of them have.

    A split with test videos of one class has no clustering. Intervals are the means of the intervals of the splits, so
    they are rather too wide than too narrow.
    """
    first = tables[0]
    rows = [
        ProbeRow(
            row.representation,
            {
                name: _mean([table.rows[index].metrics[name] for table in tables])
                for name in row.metrics
                if all(name in table.rows[index].metrics for table in tables)
            },
        )
        for index, row in enumerate(first.rows)
    ]
    notes = [f"mean over the splits {', '.join(table.split for table in tables)}"]
    return replace(
        first,
        rows=rows,
        gains={
            name: _mean([table.gains[name] for table in tables])
            for name in first.gains
            if all(name in table.gains for table in tables)
        },
        chance=mean(table.chance for table in tables),
        split="mean",
        num_train_videos=round(mean(table.num_train_videos for table in tables)),
        num_test_videos=round(mean(table.num_test_videos for table in tables)),
        num_test_groups=round(mean(table.num_test_groups for table in tables)),
        notes=[*notes, *dict.fromkeys(note for table in tables for note in table.notes)],
    )


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(
        mean(e.value for e in estimates),
        mean(e.low for e in estimates),
        mean(e.high for e in estimates),
        [mean(values) for values in zip(*(e.each for e in estimates), strict=True)],
    )


def in_markdown(text: str) -> str:
    """Text, perhaps from a file, in Markdown: without tags, links, pictures, emphasis and table cells of its own."""
    return re.sub(r"([\\`\[\]|*_])", r"\\\1", html.escape(printable(text), quote=False))


def title_of(name: str) -> str:
    """The column title of a metric: `5 per class top-1` for `lowshot_5_per_class_top1`."""
    probe, _, metric = name.rpartition("_")
    if name.startswith("retrieval_"):
        return "mAP" if metric == "map" else f"recall@{metric}"
    if name.startswith("clustering_"):
        return {"clustering_nmi": "NMI", "clustering_v_measure": "V-measure"}[name]
    if probe.startswith("knn_k"):
        k, temperature = probe.removeprefix("knn_k").split("_t")
        probe = f"k-NN, k {k}, t {temperature},"
    if probe.startswith("lowshot_"):
        amount = probe.removeprefix("lowshot_")
        per_class = amount.removesuffix("_per_class")
        probe = f"{per_class} per class" if per_class != amount else f"{float(amount):.0%} labels"
    return f"{_PROBE_TITLES.get(probe, probe.replace('_', ' '))} {_METRIC_TITLES[metric]}"


def _cell(name: str, estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    spec = _format_spec(name)
    return f"{estimate.value:{sign}{spec}} ±{(estimate.high - estimate.low) / 2:{spec}}"


def _interval(name: str, estimate: Estimate, *, sign: str = "") -> str:
    spec = sign + _format_spec(name)
    return f"{estimate.value:{spec}} [{estimate.low:{spec}}, {estimate.high:{spec}}]"


def _format_spec(name: str) -> str:
    """Fractions get three decimals, errors three digits, since they may be of any size."""
    return ".3g" if name.endswith("_mse") else ".3f"
