"""What ends a run on another process or node, as one line: which stage, which node, what went wrong.

Ray's own errors are tracebacks of several processes in one message.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from scale_ray.errors import RunFailed, UserError, first_line, last_line
from scale_ray.files.failures import is_lasting, one_line

if TYPE_CHECKING:  # it brings torch, which an extraction's driver does without
    from ray.train import TrainingFailedError

# How a cause is told from the lines of a traceback around it: `ModuleNotFoundError: No module named 'x'`.
_CAUSE = re.compile(r"(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Failed|Interrupt|Exit)\b.*")
# What a machine lacks for every task: to be retried, or reported per video, would not help.
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)


@contextmanager
def failing_as(stage: str) -> Iterator[None]:
    """In a worker: raise any exception as a `RunFailed`, or a `UserError` again, that names the stage and this node.

    The text alone goes to the driver: an exception of another package might not be readable there.
    """
    try:
        yield
    except Exception as error:
        kind = UserError if isinstance(error, UserError) else RunFailed
        raise kind(f"{stage} on node {node_name()}: {text_of(error)}") from error


def text_of(error: BaseException) -> str:
    """An exception in one line; errors of this package, and of files, say what to do and need no type."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in MACHINE_ERRORS):
        error = one_line(error)
    if isinstance(error, UserError | RunFailed):
        return first_line(error)  # Ray Data appends lines about its retries
    if isinstance(error, RayError):
        return _cause_in(error)
    message = first_line(error)
    return message if message.startswith(type(error).__name__) else f"{type(error).__name__}: {message}"


def comes_back(error: BaseException | None) -> bool:
    """Whether another attempt would meet the same error; others may come from a worker or a node that died."""
    from scale_ray.backbones import is_out_of_memory  # brings torch, which an extraction's driver does without

    repeated = (UserError, RunFailed, ImportError, AttributeError, TypeError)
    return error is not None and (isinstance(error, repeated) or is_lasting(error) or is_out_of_memory(error))


def is_loss(error: BaseException) -> bool:
    """Whether the cause is a process or a node that died, or what was lost with it: another attempt may succeed."""
    lost = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, RuntimeEnvSetupError)
    return isinstance(_cause_of(error), lost)


def is_lost_start(error: TrainingFailedError) -> bool:
    """Whether a training ended because a worker or a node died while Ray Train was starting the workers."""
    cause = getattr(error, "controller_failure", None)
    return isinstance(cause, BaseException) and is_loss(cause)


def _cause_of(error: BaseException) -> BaseException:
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def node_name() -> str:
    """The name of this machine; in a cluster with its address, by which Ray knows it."""
    address = ray.util.get_node_ip_address()
    return socket.gethostname() if address.startswith("127.") else f"{socket.gethostname()} ({address})"


def failure_of(error: BaseException) -> UserError | RunFailed:
    """The failure behind an error of Ray."""
    cause = _cause_of(error)
    if isinstance(cause, UserError | RunFailed):
        return type(cause)(first_line(cause))
    if isinstance(cause, RayActorError | WorkerCrashedError):
        return RunFailed(
            "a worker of Ray died again and again, perhaps for lack of memory or in native code of a library: "
            f"{first_line(cause)}"
        )
    if isinstance(cause, RayError):
        return RunFailed(f"Ray: {_cause_in(cause)}")
    return RunFailed(text_of(cause))


def training_failure(error: TrainingFailedError) -> RunFailed:
    """The failure behind an error of Ray Train: of a worker that died, or else of the first one that failed."""
    causes: list[BaseException] = [*getattr(error, "worker_failures", {}).values()]
    causes = causes or [getattr(error, "controller_failure", error)]
    dead = [cause for cause in causes if isinstance(cause, RayActorError)]
    if dead:
        return RunFailed(f"a training worker died: {first_line(dead[0])}")
    return RunFailed(_without_type(_cause_in(causes[0])))


def trial_failure(text: str) -> str:
    """The cause in what Ray Tune writes of the failures of a trial, of which the last one counts."""
    newest = re.split(r"^Failure # \d+ .*$", text, flags=re.MULTILINE)[-1]
    cause = _without_type(_cause_in(Exception(newest)))
    return f"its process or node died: {cause}" if "actor died" in cause or "node" in cause.split(":")[0] else cause


def _without_type(cause: str) -> str:
    """A cause without the type, if it is an error of this package."""
    for own in (RunFailed, UserError):
        cause = cause.removeprefix(f"{own.__module__}.{own.__name__}: ")
    return cause


def _cause_in(error: BaseException) -> str:
    """The line of a message of Ray that holds the cause: of a traceback the last one, otherwise the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not any("Traceback (most recent" in line for line in lines) and not isinstance(error, RayTaskError):
        return first_line(error)
    return next((line for line in reversed(lines) if _CAUSE.fullmatch(line)), last_line(error))
