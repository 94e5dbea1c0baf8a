"""Other users of the machine: temporary files are not where they could put theirs."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from scale_ray.clip_sets import cache_folder
from scale_ray.config import Ingest
from scale_ray.errors import UserError


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, in which everybody may write."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_features_are_mapped_from_a_private_folder(shared: Path):
    folder = cache_folder(Ingest())
    assert folder != shared
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_folder(Ingest()) == folder
    assert cache_folder(Ingest(cache=str(shared))) == shared


@pytest.mark.parametrize("planted", ["link", "open", "file"])
def test_a_folder_that_somebody_else_put_there_is_refused(planted: str, shared: Path):
    private = cache_folder(Ingest())
    private.rmdir()
    if planted == "link":
        (shared / "elsewhere").mkdir()
        private.symlink_to(shared / "elsewhere")
    elif planted == "open":
        private.mkdir()
        private.chmod(0o777)
    else:
        private.touch()
    with pytest.raises(UserError, match="only this user can open"):
        cache_folder(Ingest())
