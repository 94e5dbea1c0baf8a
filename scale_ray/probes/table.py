"""The table of the probes: on the screen, as Markdown, as CSV and as plain values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

from scale_ray.config import PROBES
from scale_ray.probes.bootstrap import Estimate
from scale_ray.probes.targets import CLASSES, MULTILABEL

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS_OF_SCREEN = 5
_MEASURES = {"top1": "top-1", "map": "mAP", "mse": "MSE"}
_VARIANTS = ("knn_k", "retrieval_recall_at_5", "retrieval_recall_at_10", "clustering_v_measure")
_GAIN = "gain over the feature alone"
_PROBES = {"knn": "k-NN", "mlp": "MLP"}


@dataclass(frozen=True)
class ProbeRow:
    """One representation: the estimate of every metric, by its name."""

    representation: str
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class ProbeTable:
    """What came out of the probes of one split.

    `gains` say how much the trained aggregator is ahead of the backbone's feature alone, in each metric (of errors
    how much lower); `chance` is what is reached without looking at a video. `notes` are told below the table.
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

    def values(self) -> dict[str, Any]:
        """Plain values, as for JSON."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """A row per representation and metric: `value`, and `low` and `high` of the 95 % interval."""
        import pandas as pd

        rows = [
            {"split": self.split, "representation": row.representation, "metric": name}
            | {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            for row in [*self.rows, ProbeRow(_GAIN, self.gains)]
            for name, estimate in row.metrics.items()
        ]
        return pd.DataFrame(rows)

    def metric_names(self, *, main: bool = False) -> list[str]:
        """Every metric of any row; or only those that are shown on the screen, the variants left out."""
        names = dict.fromkeys(name for row in self.rows for name in row.metrics)
        kept = [name for name in names if not main or not name.startswith(_VARIANTS)]
        return sorted(kept, key=lambda name: PROBES.index(name.partition("_")[0]))

    def lines(self) -> list[str]:
        """The table as text, the variants of a metric left out; several blocks where it is wide."""
        names = self.metric_names(main=True)
        blocks: list[str] = []
        for start in range(0, len(names), _COLUMNS_OF_SCREEN):
            some = names[start : start + _COLUMNS_OF_SCREEN]
            widths = [max(len(title_of(name)), 12) + 2 for name in some]
            head = f"{'representation':<37}" + "".join(f"{title_of(n):>{w}}" for n, w in zip(some, widths, strict=True))
            blocks += ["", head, "-" * len(head)] if start else [head, "-" * len(head)]
            for row in [*self.rows, ProbeRow(_GAIN, self.gains)]:
                sign = "+" if row.representation == _GAIN else ""
                cells = [_cell(name, row.metrics.get(name), sign) for name in some]
                told = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
                blocks.append(f"{row.representation:<37}{told}")
        return [*blocks, *self.footnotes()]

    def markdown(self) -> str:
        """Every metric with its interval."""
        names = self.metric_names()
        lines = [
            "| representation | " + " | ".join(map(title_of, names)) + " |",
            "| --- |" + " --- |" * len(names),
            *(
                f"| {row.representation} | "
                + " | ".join(_interval(n, row.metrics[n]) if n in row.metrics else "" for n in names)
                + " |"
                for row in self.rows
            ),
            f"| *{_GAIN}* | "
            + " | ".join(_interval(n, self.gains[n], sign="+") if n in self.gains else "" for n in names)
            + " |",
        ]
        return "\n".join([*lines, "", *self.footnotes()]) + "\n"

    def csv(self) -> str:
        """A line a representation and metric: value, interval, and the value of each seed."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["split", "representation", "metric", "value", "low", "high", "seeds"])
        gains = ProbeRow(_GAIN, self.gains)
        for row in [*self.rows, gains]:
            for name, of in row.metrics.items():
                each = " ".join(f"{value:.6g}" for value in of.each)
                writer.writerow(
                    [self.split, row.representation, name, f"{of.value:.6g}", f"{of.low:.6g}", f"{of.high:.6g}", each]
                )
        return out.getvalue()

    def footnotes(self) -> list[str]:
        what = {
            CLASSES: f"{self.num_classes} classes; always the most frequent class: {self.chance:.3f}",
            MULTILABEL: f"{self.num_classes} labels; equal scores: mAP {self.chance:.3f}",
        }.get(self.kind, f"numbers; always the training mean: MSE {self.chance:.4g}")
        groups = f" in {self.num_test_groups} groups" if self.num_test_groups < self.num_test_videos else ""
        seeds = "1 seed" if self.num_seeds == 1 else f"{self.num_seeds} seeds"
        return [
            f"{self.num_train_videos} training and {self.num_test_videos} test videos{groups}, {what}",
            f"{seeds}; ±: half of the 95 % interval, by bootstrap over the test {'groups' if groups else 'videos'}"
            + (" and the seeds" if self.num_seeds > 1 else ""),
            *(["one test group: its draws are all alike, and the intervals say nothing"] * (self.num_test_groups == 1)),
            *self.notes,
        ]


def mean_table(tables: Sequence[ProbeTable]) -> ProbeTable:
    """The mean over several official splits; its intervals are the means of theirs, hence too wide if anything.

    Of the metrics that every split has: one whose test videos are of one class has no clustering.
    """
    first = tables[0]
    rows = [
        ProbeRow(
            row.representation,
            {
                n: _mean([t.rows[place].metrics[n] for t in tables])
                for n in row.metrics
                if all(n in t.rows[place].metrics for t in tables)
            },
        )
        for place, row in enumerate(first.rows)
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


def title_of(name: str) -> str:
    """A column's head: `lowshot_5_per_class_top1` is `5 a class top-1`."""
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
        few = amount.removesuffix("_per_class")
        probe = f"{few} a class" if few != amount else f"{float(amount):.0%} labels"
    return f"{_PROBES.get(probe, probe.replace('_', ' '))} {_MEASURES[metric]}"


def _cell(name: str, estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    shape = _shape(name)
    return f"{estimate.value:{sign}{shape}} ±{(estimate.high - estimate.low) / 2:{shape}}"


def _interval(name: str, estimate: Estimate, *, sign: str = "") -> str:
    shape = sign + _shape(name)
    return f"{estimate.value:{shape}} [{estimate.low:{shape}}, {estimate.high:{shape}}]"


def _shape(name: str) -> str:
    """Shares have three places; errors are in units of their own, and may be small or large."""
    return ".3g" if name.endswith("_mse") else ".3f"
