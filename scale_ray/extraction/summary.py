"""The outcome of an extraction, as counts and as lines to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from scale_ray.console import Result
from scale_ray.store import Failure

if TYPE_CHECKING:
    import pandas as pd

# At most this many failures are listed; the ledger has all of them.
_FAILURES_SHOWN = 20
_CHANGED_SHOWN = 5


@dataclass(frozen=True)
class ExtractionSummary(Result):
    """The outcome of a run for one store: `num_done` + `num_failed` + `num_skipped` + `num_changed` = `num_videos`.

    Skipped videos failed in an earlier run and were not tried again. `num_extracted` counts the videos that this run
    completed. `changed` says what changed of each video that was replaced since the store got its features, by id: it
    keeps the old ones. `notes` are lines about how it went.
    """

    store: str
    num_videos: int
    num_done: int
    num_failed: int
    num_skipped: int
    num_extracted: int
    corrected: bool
    failures: list[Failure] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def num_changed(self) -> int:
        return len(self.changed)

    @property
    def failed_fraction(self) -> float:
        """Fraction of all videos that failed, in this or an earlier run, in [0, 1]."""
        return (self.num_failed + self.num_skipped) / max(self.num_videos, 1)  # a part of few videos may have none

    def lines(self) -> list[str]:
        if self.num_extracted == 0 and not self.corrected:
            status = "everything was done already"
        elif self.num_extracted == 0:
            status = "everything was extracted already; labels, splits and columns were brought up to date"
        else:
            status = f"{self.num_extracted} videos extracted now"
        lines = [f"{self.num_done} of {self.num_videos} videos are in {self.store}; {status}", *self.notes]
        if self.failures or self.changed:
            skipped = ", skipped: failed before, --retry-failed tries them again" if self.num_skipped else ""
            changed = f"{self.num_changed} changed + " if self.changed else ""
            lines.append(
                f"{self.num_done} done + {changed}{self.num_failed} failed + {self.num_skipped} skipped = "
                f"{self.num_videos} videos{skipped}"
            )
            lines += [f"  failed: {e.video_id} ({e.stage}: {e.reason})" for e in self.failures[:_FAILURES_SHOWN]]
        if len(self.failures) > _FAILURES_SHOWN:
            more = len(self.failures) - _FAILURES_SHOWN
            lines.append(f"  and {more} more: the ledger in {self.store}/failures lists them all")
        if self.changed:
            lines.append("changed since they were stored, and left out; --re-extract-changed extracts them again:")
            shown = list(self.changed.items())[:_CHANGED_SHOWN]
            lines += [f"  changed: {video_id} ({what})" for video_id, what in shown]
        if self.num_changed > _CHANGED_SHOWN:
            lines.append(f"  and {self.num_changed - _CHANGED_SHOWN} more: --json lists them all")
        return lines

    def values(self) -> dict[str, Any]:
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """The counts, one row per store."""
        return ExtractionResult([self]).to_pandas()


@dataclass(frozen=True)
class ExtractionResult(Result):
    """The outcome of an extraction for the store of each backbone."""

    stores: Sequence[ExtractionSummary]

    @property
    def failed_fraction(self) -> float:
        """The largest fraction of failed videos of any store, in [0, 1]."""
        return max(summary.failed_fraction for summary in self.stores)

    def lines(self) -> list[str]:
        return [line for summary in self.stores for line in summary.lines()]

    def values(self) -> dict[str, Any]:
        values = [summary.values() for summary in self.stores]
        return values[0] if len(values) == 1 else {"stores": values}

    def to_pandas(self) -> pd.DataFrame:
        """The counts, one row per store."""
        import pandas as pd

        lists = ("failures", "changed", "notes")
        rows = [{name: value for name, value in row.values().items() if name not in lists} for row in self.stores]
        return pd.DataFrame(rows)
