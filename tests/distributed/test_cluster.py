"""A local Ray that does not start is one line; nothing here starts one."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import ray

from scale_ray.config import Cluster
from scale_ray.distributed.cluster import connected
from scale_ray.errors import RunFailed, UserError


def starting(monkeypatch, tmp_path, *, free_bytes: int) -> None:
    def fails(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nMore")

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    with connected(Cluster(cpus=1)):
        pass


def test_a_temporary_folder_without_room_is_named(monkeypatch, tmp_path):
    with pytest.raises(RunFailed, match=rf"{tmp_path}.*: expected room for the files of a local Ray, found none"):
        starting(monkeypatch, tmp_path, free_bytes=4096)


def test_any_other_reason_is_its_first_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"expected a local Ray to start on this machine, found: .* during startup"):
        starting(monkeypatch, tmp_path, free_bytes=2**30)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_that_python_cannot_use_is_refused_with_those_that_it_can(address):
    expected = f"address: expected HOST:PORT or auto .* found {address}"
    with pytest.raises(UserError, match=expected), connected(Cluster(address=address)):
        pass
