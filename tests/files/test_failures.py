"""Errors of the operating system are one line that names the file and what to do, and earlier data stay whole."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.stores import make_store

import scale_ray as sr
from scale_ray.cli.main import main
from scale_ray.console import Console
from scale_ray.errors import RunFailed, UserError
from scale_ray.files.failures import explained, is_lasting, one_line
from scale_ray.files.locations import atomic_write
from scale_ray.store import write_lease

OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE)
OF_THE_PATH = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP),
)


@pytest.mark.parametrize("number", [*OF_THE_MACHINE, *OF_THE_PATH], ids=errno.errorcode.get)
def test_an_error_names_the_file_and_what_to_do(number):
    failure = one_line(OSError(number, os.strerror(number), "/data/store/x.parquet"))
    assert isinstance(failure, RunFailed if number in OF_THE_MACHINE else UserError)
    assert str(failure).startswith("/data/store/x.parquet: expected ")
    assert f"found: {os.strerror(number)}; " in str(failure)
    assert is_lasting(OSError(number, "x"))


def test_an_error_of_another_kind_is_a_failed_run_with_its_text():
    assert str(one_line(OSError(errno.EIO, "Input/output error", "/d"))).endswith("found: Input/output error")
    failure = one_line(OSError("When reading s3://bucket: AWS Error ACCESS_DENIED\nmore"))
    assert str(failure) == "expected to read or write it, found: When reading s3://bucket: AWS Error ACCESS_DENIED"
    assert isinstance(failure, RunFailed)
    assert not is_lasting(OSError(errno.ECONNRESET, "reset"))


def test_an_error_without_a_place_keeps_the_text_of_the_library():
    error = OSError(errno.EACCES, "Failed to open local file '/x/y'. Detail: [errno 13] Permission denied")
    assert "/x/y" in str(one_line(error))


def test_a_file_that_cannot_be_written_leaves_the_earlier_one_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "table"
    path.write_bytes(b"earlier")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=f"{path}: expected room for this file"), atomic_write(str(path)) as file:
        file.write(b"later")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("table", b"earlier")]


def test_a_name_that_is_too_long_or_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / ("x" * 300), tmp_path / "file" / "below" / "x"):
        with pytest.raises(UserError, match="expected a"), atomic_write(str(path)) as file:
            file.write(b"")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_the_command_line_and_python_show_it_without_a_traceback(capsys, monkeypatch, tmp_path, number):
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr("scale_ray.stages.embed.Aggregator.load", fails)
    monkeypatch.setattr("scale_ray.stages.embed.aggregator_of", lambda *_: "a")
    with pytest.raises(SystemExit) as ended:
        main(["embed", "v", "--checkpoint", "a", "--out", "o"])
    printed = capsys.readouterr()
    assert ended.value.code == (1 if number == errno.ENOSPC else 2)
    assert printed.err.startswith(f"Error: {tmp_path}/x: expected ")
    assert len(printed.err.splitlines()) == 1
    with pytest.raises(RunFailed if number == errno.ENOSPC else UserError, match="expected"):
        sr.embed("v", "a", "o")
    with pytest.raises(OSError, match="x"):
        main(["embed", "v", "--checkpoint", "a", "--out", "o", "--debug"])


def test_a_context_passes_other_errors_through():
    with pytest.raises(ZeroDivisionError), explained("/x"):
        raise ZeroDivisionError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let the tests mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_store_on_a_full_disk_stays_whole_and_goes_on_when_there_is_room(small_disk):
    rng = np.random.default_rng(0)
    ids = [f"v{number}" for number in range(8)]
    features = {video_id: rng.normal(size=(16, 5)) for video_id in ids}
    store = make_store(small_disk / "store", features, sides=["train"] * 8)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(rng.bytes(4096))
    with pytest.raises(RunFailed, match=r"part-train-.*expected room for this file"):
        store.write(pa.table({"x": rng.normal(size=65536)}), "features", "part-train-x.parquet")
    with pytest.raises(RunFailed, match=r"leases.*expected room for this file"), write_lease(store.location, Console()):
        pass
    assert store.stored_ids("train") == set(ids)
    assert not list(small_disk.rglob("*.unfinished"))
    filler.unlink()
    with write_lease(store.location, Console()) as lease:
        lease.check()


def test_a_read_only_store_is_refused_in_one_line_and_can_be_read(small_disk):
    store = make_store(small_disk / "store", {"v": np.zeros((16, 5))}, sides=["train"])
    with write_lease(store.location, Console()):
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert store.stored_ids("train") == {"v"}
    with pytest.raises(UserError, match="expected a place that can be written to, found: Read-only file system"):
        store.write(pa.table({"x": [1]}), "videos.parquet")
    with pytest.raises(UserError, match=r"leases.*Read-only file system"), write_lease(store.location, Console()):
        pass
