"""Progress of a stage, for a person: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LOG_EVERY_S = 10.0


class Progress:
    """Counts done of total, with the rate and an estimate of the time left, on standard error.

    Used as a context. `quiet` prints nothing.
    """

    def __init__(self, what: str, total: int, unit: str, *, quiet: bool = False) -> None:
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self._count = 0
        self._first: tuple[float, int] | None = None
        self._began_s = self._told_s = time.monotonic()
        self._bar: tqdm | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", dynamic_ncols=True, leave=True)

    def __enter__(self) -> Progress:
        if not self.quiet and self._bar is None:
            self._say(f"{self.what}: {self.total} {self.unit}")
        return self

    def advance(self, step: int) -> None:
        """`step` more are done."""
        self.to(self._count + step)

    def to(self, count: int, note: str = "") -> None:
        """`count` are done now; `note` stands behind, such as the loss."""
        step, self._count = count - self._count, count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
            return
        now_s = time.monotonic()
        if self._first is None:
            self._first = (now_s, count)
        if not self.quiet and now_s - self._told_s >= _LOG_EVERY_S:
            self._told_s = now_s
            # Counted from the first result on: what starts up before it says nothing of the rate.
            first_s, first_count = self._first or (self._began_s, 0)
            rate = (count - first_count) / max(now_s - first_s, 1e-3)
            told = [f"{self.what}: {count}/{self.total} {self.unit}"]
            if rate > 0:
                told += [f"{rate:.3g}/s", f"{(self.total - count) / rate:.0f} s left"]
            self._say(", ".join([*told, note] if note else told))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self.quiet and kind is None:
            took_s = time.monotonic() - self._began_s
            self._say(f"{self.what}: {self._count} {self.unit} in {took_s:.1f} s")

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
