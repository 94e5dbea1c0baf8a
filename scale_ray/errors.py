"""What goes wrong through no fault of the program, told in one line."""

from __future__ import annotations


class UserError(ValueError):
    """Input that a user can put right: says what was expected and what was found.

    The command line prints the message alone and ends with exit code 2.
    """


class RunFailed(RuntimeError):
    """A run that began well and could not be finished; exit code 1."""


class VideoError(Exception):
    """One video that cannot be used: an entry of the failure ledger, never the end of a run.

    `stage` is where it happened (`open`, `decode`, `backbone`), the message is the reason, `exception` what
    was raised beneath, as text.
    """

    def __init__(self, stage: str, reason: str, exception: str = "") -> None:
        super().__init__(stage, reason, exception)
        self.stage = stage
        self.reason = reason
        self.exception = exception

    def __str__(self) -> str:
        return self.reason


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """The last line of an error's message that is not empty: the cause, below what Ray wraps around it."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
