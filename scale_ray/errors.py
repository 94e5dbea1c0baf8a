"""Exceptions for failures that are not bugs in this package; each message is one line.

Messages, results and records are redacted where they leave the program: they contain texts of other packages, and those
contain URIs with passwords, keys and options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

_Value = TypeVar("_Value")

# scheme://user:password@ and what follows, up to a space or the quote that encloses the URI. A password may contain `/`
# or `?` although it should not: what follows the first colon is one unless it is the number of a port.
_URI = re.compile(
    r"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30})://
        (?:[^/?\s]*@ | [^/?\s:]+:(?!\d*(?:[/?\s'"]|$))\S*?@)?
        (?P<place>[^?\s'"<>]*)
        (?P<options>\?[^\s'"<>]*)?""",
    re.VERBOSE,
)


def redacted(value: _Value) -> _Value:
    """A text whose URIs are without user, password and options; and the same for the texts in mappings and lists."""
    shown: Any = value
    if isinstance(value, str):
        shown = _URI.sub(_shown, value) if "://" in value else value
    elif isinstance(value, Mapping):
        shown = {redacted(key): redacted(inner) for key, inner in value.items()}
    elif isinstance(value, list):
        shown = [redacted(inner) for inner in value]
    elif isinstance(value, tuple):
        shown = tuple(redacted(inner) for inner in value)
    return shown


def _shown(uri: re.Match[str]) -> str:
    # What follows the # of a page stays in the browser.
    is_page = uri["scheme"].startswith("http") and "#" in uri["place"]
    return f"{uri['scheme']}://{uri['place']}{(uri['options'] or '') if is_page else ''}"


class UserError(ValueError):
    """Invalid input that a user can correct; the message states what was expected and what was found.

    The command line prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class RunFailed(RuntimeError):
    """A run that started with valid input but could not finish; exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class VideoError(Exception):
    """One video that cannot be used: it becomes an entry of the failure ledger and never ends the run.

    `stage` is the step that failed (`open`, `decode`, `backbone`), `reason` is the message, and `exception` is
    the text of the underlying exception.
    """

    def __init__(self, stage: str, reason: str, exception: str = "") -> None:
        self.stage, self.reason, self.exception = stage, redacted(reason), redacted(exception)
        super().__init__(self.stage, self.reason, self.exception)

    def __str__(self) -> str:
        return self.reason


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, or the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """The last non-empty line of an error's message, or the name of its type; in errors of Ray it is the cause."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
