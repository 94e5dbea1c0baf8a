"""Messages, progress and results for a person: in a terminal, in a log and in a notebook.

`show` is the only way of text to the screen: names, labels and errors come from files, and may hold anything.
"""

from __future__ import annotations

import base64
import html
import re
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from scale_ray.errors import redacted

if TYPE_CHECKING:
    import pandas as pd

_LOG_EVERY_S = 10.0
# In the log of a job: what follows is the result, as on standard output.
RESULT_FOLLOWS = "result:"
# Control characters steer a terminal, end lines, or turn the direction of the text around them; surrogates, which stand
# for bytes of file names that are no UTF-8, cannot be printed at all.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(line: str) -> str:
    """A line as a person may see it: without passwords in URIs; control characters are escaped and do nothing."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), redacted(line))


def shortened(text: str, most: int) -> str:
    """A text of a file as a part of a line or of a picture: printable, and cut to at most `most` characters."""
    text = printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def show(text: str, *, error: bool = False) -> None:
    """Print lines on standard output, or on standard error."""
    lines = "\n".join(map(printable, text.split("\n")))
    print(lines, file=sys.stderr if error else sys.stdout, flush=True)


def show_traceback(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Print an error that nobody expected, in the place of `sys.excepthook`."""
    show("".join(traceback.format_exception(error)).rstrip("\n"), error=True)


@dataclass(frozen=True)
class Console:
    """Where a stage reports while it runs: standard error, so that results alone are on standard output.

    `quiet` prints nothing but errors; `verbose` lets the libraries log, too.
    """

    quiet: bool = False
    verbose: bool = False

    def say(self, line: str) -> None:
        """Print a message of one line."""
        if not self.quiet:
            show(printable(line), error=True)

    def progress(self, name: str, total: int, unit: str) -> Progress:
        """A progress display for `total` steps of work, to be used as a context."""
        return Progress(name, total, unit, quiet=self.quiet)


class Progress:
    """Shows how much of a stage is done, with the rate and an estimate of the time left, on standard error.

    A bar in a terminal and in a notebook, otherwise a line every 10 s. To be used as a context; `quiet` shows
    nothing.
    """

    def __init__(self, name: str, total: int, unit: str, *, quiet: bool = False) -> None:
        self.name, self.total, self.unit, self.quiet = name, total, unit, quiet
        self._count = 0
        self._first: tuple[float, int] | None = None
        self._started_s = self._printed_s = time.monotonic()
        self._bar: Any = None
        if not quiet and (sys.stderr.isatty() or _in_notebook()):
            with warnings.catch_warnings(action="ignore"):  # in a notebook without widgets it falls back to text
                from tqdm.auto import tqdm  # only here: it looks for a notebook when it is imported

            self._bar = tqdm(total=total, desc=name, unit=f" {unit}", dynamic_ncols=True, leave=True)

    def __enter__(self) -> Progress:
        if not self.quiet and self._bar is None:
            self._print(f"{self.name}: {self.total} {self.unit}")
        return self

    def advance(self, steps: int) -> None:
        """Count `steps` more."""
        self.to(self._count + steps)

    def to(self, count: int, note: str = "") -> None:
        """Set the count; `note` is shown behind it, for example the loss."""
        step, self._count = count - self._count, count
        if self._bar is not None:
            self._bar.set_postfix_str(printable(note), refresh=False)
            self._bar.update(step)
            return
        now_s = time.monotonic()
        if self._first is None:
            self._first = (now_s, count)
        if not self.quiet and now_s - self._printed_s >= _LOG_EVERY_S:
            self._printed_s = now_s
            # Counted from the first result on: the start-up before it says nothing about the rate.
            first_s, first_count = self._first
            rate = (count - first_count) / max(now_s - first_s, 1e-3)
            parts = [f"{self.name}: {count}/{self.total} {self.unit}"]
            if rate > 0:
                parts += [f"{rate:.3g}/s", f"{(self.total - count) / rate:.0f} s left"]
            self._print(", ".join([*parts, note] if note else parts))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self.quiet and kind is None:
            elapsed_s = time.monotonic() - self._started_s
            self._print(f"{self.name}: {self._count} {self.unit} in {elapsed_s:.1f} s")

    @staticmethod
    def _print(line: str) -> None:
        show(printable(line), error=True)


class Result:
    """Base of what a stage returns: prints as text, and shows itself as a table with pictures in a notebook."""

    def lines(self) -> Sequence[str]:
        """The result as text, as the command prints it."""
        raise NotImplementedError

    def values(self) -> dict[str, Any]:
        """The result as plain values, as `--json` prints it."""
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """The result as a table."""
        raise NotImplementedError

    def pictures(self) -> Sequence[bytes]:
        """PNG files that belong to the result."""
        return ()

    def __str__(self) -> str:
        return "\n".join(map(printable, self.lines()))

    def _repr_html_(self) -> str:
        images = "".join(
            f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" style="max-width: 100%">'
            for png in self.pictures()
        )
        return f"<pre>{html.escape(str(self))}</pre>{images}"


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
