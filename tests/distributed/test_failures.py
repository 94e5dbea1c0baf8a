"""An error from another process becomes one line with its stage, its node and its cause."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import ray
from ray.exceptions import ActorDiedError, RaySystemError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from scale_ray.distributed import failures
from scale_ray.distributed.failures import failing_as, failure_of, text_of, training_failure
from scale_ray.errors import RunFailed, UserError

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\n'


@pytest.fixture
def cluster_node(monkeypatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module named 'codec_x'"), "ModuleNotFoundError: No module named 'codec_x'"),
        (ValueError("shapes\ndo not match"), "ValueError: shapes"),
        (UserError("weights: expected a file, found none at /w.pt"), "weights: expected a file, found none at /w.pt"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), "/x: expected room for this file, found: No space"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/w.pt"), "/w.pt: expected a file or folder"),
        (AssertionError(), "AssertionError"),
        (RaySystemError(f"x\ntraceback: {TRACEBACK}ModuleNotFoundError: No module named 'y'"), "No module named 'y'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_in_a_worker_names_stage_node_and_cause(cluster_node, error, expected):
    with pytest.raises(UserError if isinstance(error, UserError) else RunFailed) as raised, failing_as("backbone"):
        raise error
    text = str(raised.value)
    assert text.startswith(f"backbone on node {socket.gethostname()} (10.0.0.7): ")
    assert expected in text
    assert "\n" not in text
    assert raised.value.__cause__ is error


def test_a_local_ray_is_named_without_its_loopback_address(monkeypatch):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    assert failures.node_name() == socket.gethostname()


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("f", f"{TRACEBACK}{type(cause).__name__}: {cause}", cause).as_instanceof_cause()


def test_the_cause_is_found_behind_errors_of_ray():
    inner = RunFailed("backbone on node n: ValueError: shapes\nFailed to apply UDF transform after 1/1 attempts")
    assert str(failure_of(task_error(inner))) == "backbone on node n: ValueError: shapes"
    assert type(failure_of(task_error(UserError("x: expected y")))) is UserError
    assert str(failure_of(task_error(KeyError("k")))) == "KeyError: 'k'"
    assert str(failure_of(RaySystemError("the raylet died"))) == "Ray: System error: the raylet died"


def test_workers_that_die_again_and_again_are_said_to():
    failure = failure_of(ActorDiedError())
    assert isinstance(failure, RunFailed)
    assert str(failure).startswith("a worker of Ray died again and again, perhaps for lack of memory")
    assert "\n" not in str(failure)


def test_a_failed_training_is_told_by_its_cause():
    collateral = RuntimeError("gloo: Connection closed by peer")
    assert str(training_failure(WorkerGroupError("", {0: collateral, 1: ActorDiedError()}))).startswith(
        "a training worker died: "
    )
    own = RuntimeError(f"{TRACEBACK}scale_ray.errors.RunFailed: training on node n: ValueError: x")
    assert str(training_failure(WorkerGroupError("", {0: own}))) == "training on node n: ValueError: x"
    assert "No space left" in str(training_failure(ControllerError(OSError(errno.ENOSPC, "No space left on device"))))
    assert text_of(OSError("reset")) == "OSError: reset"
