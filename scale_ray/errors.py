"""Exceptions for failures that are not bugs in this package; each message is one line."""

from __future__ import annotations

from scale_ray.redaction import redacted


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
