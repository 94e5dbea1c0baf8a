"""Connect to a cluster or start a Ray of our own, and turn its resources into sizes."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Read when Ray is imported or started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
# Tune's newer reporter prints a banner at every verbosity; ours tells of the progress.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A CPU task must not hide the GPUs from itself by Ray's coming default, nor warn of it.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from scale_ray.config import Cluster
from scale_ray.distributed.resources import Size
from scale_ray.errors import UserError, first_line


@contextmanager
def connected(cluster: Cluster, *, verbose: bool = False) -> Iterator[Size]:
    """A Ray to work on: the named cluster, else RAY_ADDRESS, else one of our own, stopped at the end.

    Inside another `connected` the same Ray is used.

    Raises
    ------
    UserError
        Where a named cluster does not answer.
    """
    if ray.is_initialized():
        yield _size()
        return
    level = logging.INFO if verbose else logging.ERROR
    if not verbose:
        # Ray's core writes its own warnings past Python's logging.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        _refuse_silent(address)
    try:
        with _core_unheard(not verbose):
            if address:
                ray.init(address=address, logging_level=level, log_to_driver=verbose)
            else:
                # "local" makes sure of one of our own: a dead head's address may still lie about.
                ray.init(
                    address="local",
                    num_cpus=cluster.cpus or None,
                    include_dashboard=False,
                    logging_level=level,
                    log_to_driver=verbose,
                )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"a Ray cluster at {address}" if address else "Ray to start on this machine"
        raise UserError(f"address: expected {where}, found: {first_line(error)}") from error
    try:
        _quieten(level)
        yield _size()
    finally:
        ray.shutdown()


def _refuse_silent(address: str) -> None:
    """Ray waits for minutes for a head that is not there; a closed port is known at once."""
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
def _core_unheard(unheard: bool) -> Iterator[None]:
    """Ray's core says at its start how it was told to say nothing; errors come as exceptions."""
    if not unheard:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _size() -> Size:
    resources = ray.cluster_resources()
    return Size(max(int(resources.get("CPU", 1)), 1), int(resources.get("GPU", 0)))


def _quieten(level: int) -> None:
    """Ray's libraries log every start and plan; a person wants the stage's own progress."""
    for name in ("ray.data", "ray.train", "ray.tune", "ray"):
        logging.getLogger(name).setLevel(level)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
