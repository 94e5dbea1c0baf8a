"""What an extraction found and did, in numbers and in lines."""

from __future__ import annotations

from dataclasses import dataclass, field

from scale_ray.store.schema import Failure

# As many failures are listed by name; the ledger holds all.
_FAILURES_SHOWN = 20


@dataclass(frozen=True)
class ExtractionSummary:
    """What a run found and did: `num_done` + `num_failed` + `num_skipped` = `num_videos`.

    Skipped are the videos that failed in an earlier run and were not tried again.
    """

    store: str
    num_videos: int
    num_done: int
    num_failed: int
    num_skipped: int
    num_extracted: int
    corrected: bool
    failures: list[Failure] = field(default_factory=list)

    @property
    def failed_share(self) -> float:
        return (self.num_failed + self.num_skipped) / self.num_videos

    def lines(self) -> list[str]:
        if self.num_extracted == 0 and not self.corrected:
            began = "everything was done already"
        elif self.num_extracted == 0:
            began = "everything was extracted already; labels, splits and columns were brought up to date"
        else:
            began = f"{self.num_extracted} videos extracted now"
        lines = [f"{self.num_done} of {self.num_videos} videos are in {self.store}; {began}"]
        if self.failures:
            skipped = ", skipped: failed before, --retry-failed tries them again" if self.num_skipped else ""
            lines.append(
                f"{self.num_done} done + {self.num_failed} failed + {self.num_skipped} skipped = {self.num_videos} "
                f"videos{skipped}"
            )
            lines += [f"  failed: {e.video_id} ({e.stage}: {e.reason})" for e in self.failures[:_FAILURES_SHOWN]]
        if len(self.failures) > _FAILURES_SHOWN:
            more = len(self.failures) - _FAILURES_SHOWN
            lines.append(f"  and {more} more: the ledger in {self.store}/failures lists them all")
        return lines
