"""Exceptions for failures that are not bugs in this package; each message is one line.

Messages, results and records are redacted where they leave the program: they contain texts of other packages, and those
contain URIs with passwords, keys and options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

_Value = TypeVar("_Value")

# A URI in quotes ends at the same quote before a space or a punctuation mark; any other one at a space.
_URI = re.compile(
    r"""(?P<quote>['"]) (?P<quoted>[A-Za-z][A-Za-z0-9+.-]{0,30}://.*?) (?P=quote)(?=[\s,;:.)\]}>]|$)
        | (?P<bare>[A-Za-z][A-Za-z0-9+.-]{0,30}://\S*)""",
    re.VERBOSE,
)
_END = re.compile(r"""['"),;:.>\]}]*$""")
# What cannot be a user with a password: a host, perhaps with a port. URIs of buckets have no ports.
_HOST = re.compile(r"[^/?@:]*(:\d{1,5})?(?=[/?]|$)")
_WITHOUT_PORTS = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf")


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


def _shown(found: re.Match[str]) -> str:
    if found["quote"]:
        return f"{found['quote']}{_shown_uri(found['quoted'])}{found['quote']}"
    end = _END.search(found["bare"])
    assert end is not None
    return _shown_uri(found["bare"][: end.start()]) + end[0]


def _shown_uri(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    host = _HOST.match(rest)
    if host is None or (host[1] and scheme.lower() in _WITHOUT_PORTS):
        # Up to the last @: a password may contain one, and `/` and `?`, although it should not.
        rest = rest.rpartition("@")[2]
    page = scheme.startswith("http") and "#/" in rest.partition("?")[0]  # what follows stays in the browser
    return f"{scheme}://{rest if page else rest.partition('?')[0]}"


class Terminated(KeyboardInterrupt):
    """The process is to end (SIGTERM): a job is stopped, or the machine is taken away. It ends as after Ctrl-C."""


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
