"""Errors of the operating system that a path, a disk or a server can cause: one line that names it and what to do.

Whoever knows what a file is for raises an error of its own. Others pass through here: where files are written, and at
last in the command line and in the Python API.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from scale_ray.errors import RunFailed, UserError, first_line

_AGAIN = "the same command then continues, and what was written before is whole"
_ROOM = ("room for this file", f"make room there; {_AGAIN}")
_PERMISSION = ("permission", "change the permissions, or use another place")
# What was expected, and what to do, by the number of the error.
_KNOWN = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: ("to be allowed a file of this size", f"raise the limit (`ulimit -f`); {_AGAIN}"),
    errno.EMFILE: ("to be allowed more open files", f"raise the limit (`ulimit -n`); {_AGAIN}"),
    errno.EROFS: ("a place that can be written to", "use another place"),
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENAMETOOLONG: ("a name that the file system takes", "use a shorter one"),
    errno.ENOTDIR: ("a folder", "a file is in its place, or in that of a folder above it"),
    errno.EISDIR: ("a file", "a folder is in its place"),
    errno.EEXIST: ("a folder, or nothing", "a file is in its place"),
    errno.ENOENT: ("a file or folder", "it is missing, or a folder above it"),
    errno.ELOOP: ("a file or folder", "links there lead to each other"),
}
# The input was right: the run failed, and continues when the cause is gone.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE)


def is_lasting(error: BaseException) -> bool:
    """Whether an error comes back at every attempt until somebody removes its cause."""
    return isinstance(error, OSError) and error.errno in _KNOWN


def one_line(error: OSError, location: str | None = None) -> UserError | RunFailed:
    """The error as one that is printed without a traceback; `location` is the path or URI that it is about."""
    named = location or error.filename
    place = f"{os.fsdecode(named)}: " if isinstance(named, str | bytes | os.PathLike) else ""
    if error.errno not in _KNOWN:
        return RunFailed(f"{place}expected to read or write it, found: {error.strerror or first_line(error)}")
    expected, advice = _KNOWN[error.errno]
    # Without a place, the text of a library may hold one.
    reason = os.strerror(error.errno) if place else first_line(error)
    kind = RunFailed if error.errno in _OF_THE_MACHINE else UserError
    return kind(f"{place}expected {expected}, found: {reason}; {advice}")


@contextmanager
def explained(location: str | None = None) -> Iterator[None]:
    """Raise an OSError from within the context as a `UserError` or a `RunFailed` of one line."""
    try:
        yield
    except OSError as error:
        raise one_line(error, location) from error
