"""Connect to a Ray cluster, or start a local Ray, and read its size."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

# Ray reads these variables when it is imported or started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
# Tune's newer reporter prints a banner at every verbosity; the console shows the progress instead.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Leaves GPUs visible in CPU tasks, as Ray will do by default, and avoids Ray's warning about this change.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig

from scale_ray.config import Cluster
from scale_ray.distributed.failures import failure_of
from scale_ray.distributed.private_ray import private_ray, protect_token
from scale_ray.distributed.resources import ClusterSize, Node
from scale_ray.errors import RunFailed, UserError, first_line
from scale_ray.files.import_path import package_folder_to_name

# With less than this, a Ray that did not start had no room; its logs alone take some.
_MIN_FREE_BYTES = 2**20


@contextmanager
def connected(cluster: Cluster, *, verbose: bool = False) -> Iterator[ClusterSize]:
    """Connect to Ray for the duration of the context, and yield the size of the cluster.

    Uses the configured address, otherwise RAY_ADDRESS, otherwise a local Ray that is stopped at the end. Inside
    another `connected`, its connection is used.

    Raises
    ------
    UserError
        If the cluster at the given address does not answer, or a local Ray does not start.
    RunFailed
        If Ray fails within the context, or what it runs.
    """
    try:
        if ray.is_initialized():
            yield _cluster_size()
        else:
            with _connection(cluster, verbose=verbose):
                yield _cluster_size()
    except RayError as error:
        raise failure_of(error) from error


@contextmanager
def _connection(cluster: Cluster, *, verbose: bool) -> Iterator[None]:
    # Ray logs errors with the tracebacks of several processes, and raises them as well: they are printed in one line.
    level = logging.INFO if verbose else logging.CRITICAL
    if not verbose:
        # Ray's core prints its own warnings, which do not go through Python's logging.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        raise UserError(f"address: expected HOST:PORT or auto from Python, found {address}; only commands run as jobs")
    if address and address.startswith("ray://"):
        raise UserError(
            f"address: expected HOST:PORT or auto on a node of the cluster, or http://HEAD:8265 from elsewhere, found "
            f"{address}; Ray's client cannot run what is streamed and trained"
        )
    if address:
        _check_reachable(address)
    protect_token()
    with nullcontext() if address else private_ray(), _raylet_muted(not verbose):
        try:
            _start(cluster, address, level, verbose=verbose)
            _set_log_level(level)
            yield
        finally:
            ray.shutdown()


def _start(cluster: Cluster, address: str | None, level: int, *, verbose: bool) -> None:
    options = {"job_config": _Job(), "logging_level": level, "log_to_driver": verbose}
    try:
        with _stderr_muted(not verbose), _sigterm_unchanged():
            if address:
                ray.init(address=address, **options)
            else:
                # "local" always starts a new Ray; without it, Ray may try the stored address of a dead head.
                ray.init(address="local", num_cpus=cluster.cpus or None, include_dashboard=False, **options)
    except Exception as error:  # Ray raises plain ones, too
        temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        if not address and shutil.disk_usage(temporary).free < _MIN_FREE_BYTES:
            raise RunFailed(
                f"{temporary}: expected room for the files of a local Ray, found none; make room there, or name "
                "another folder in RAY_TMPDIR"
            ) from error
        where = f"a Ray cluster at {address}" if address else "a local Ray to start on this machine"
        raise UserError(f"address: expected {where}, found: {first_line(error)}") from error


@contextmanager
def _sigterm_unchanged() -> Iterator[None]:
    """Keep what this program does at SIGTERM; Ray would end the process without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class _Job(JobConfig):  # type: ignore[misc]  # Ray is not typed for mypy here
    """A job whose workers do not import from the folder in which the command was started.

    Ray would put the current folder and that of the script before all libraries of the workers, except for a job with a
    working directory of its own, whose name is on PYTHONPATH.
    """

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=package_folder_to_name())

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def _check_reachable(address: str) -> None:
    """Check that the head's port is open: Ray itself would wait for minutes for a missing head.

    Raises
    ------
    UserError
        If the port is closed.
    """
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a name that Ray itself resolves
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"address: expected a Ray cluster at {address}, found none that answers ({error.strerror or error})"
        ) from error


@contextmanager
def _stderr_muted(muted: bool) -> Iterator[None]:
    """Discard standard error while Ray starts: its core prints there about its log level; errors are exceptions."""
    if not muted:
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


@contextmanager
def _raylet_muted(muted: bool) -> Iterator[None]:
    """Discard messages of Ray's daemons: it prints them among the results on standard output, whatever its options."""
    before = ray._private.worker._worker_logs_enabled
    ray._private.worker._worker_logs_enabled = before and not muted
    try:
        yield
    finally:
        ray._private.worker._worker_logs_enabled = before


def _cluster_size() -> ClusterSize:
    return ClusterSize.of(
        Node(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)), dict(node.get("Labels") or {}))
        for node in ray.nodes()
        if node["Alive"]
    )


def _set_log_level(level: int) -> None:
    """Set the log level of Ray's libraries, and hide their progress bars: the console shows its own progress."""
    for name in ("ray.data", "ray.train", "ray.tune", "ray"):
        logging.getLogger(name).setLevel(level)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ours are of one line; Ray would put another one around them.
    context.raise_original_map_exception = True
