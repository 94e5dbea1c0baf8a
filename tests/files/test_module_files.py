"""A user's own module travels to processes that do not have it; nothing else does."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from scale_ray.files.module_files import files_of_module, import_last


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder on the path with a package, a module that it imports, and files that have nothing to do with it."""
    (tmp_path / "package_of_mine" / "parts").mkdir(parents=True)
    (tmp_path / "package_of_mine" / "__init__.py").write_text("from beside_it import NUMBER\n")
    (tmp_path / "package_of_mine" / "parts" / "__init__.py").write_text("")
    (tmp_path / "package_of_mine" / "parts" / "later.py").write_text("LATER = 2\n")
    (tmp_path / "package_of_mine" / "data.bin").write_bytes(bytes(100))
    (tmp_path / "beside_it.py").write_text("NUMBER = 1\n")
    (tmp_path / "types.py").write_text("raise AssertionError\n")
    (tmp_path / "secrets.txt").write_text("x")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.import_module("package_of_mine")
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("package_of_mine", "beside_it")]:
        del sys.modules[name]


def test_a_package_and_what_it_imported_beside_it_travel_and_no_other_file(folder):
    files = files_of_module("package_of_mine")
    assert files.folder == str(folder)
    assert set(files.contents) == {
        "beside_it.py",
        "package_of_mine/__init__.py",
        "package_of_mine/parts/__init__.py",
        "package_of_mine/parts/later.py",
    }


def test_installed_and_built_in_modules_do_not_travel():
    assert files_of_module("pytest") is None
    assert files_of_module("textwrap") is None
    assert files_of_module("sys") is None


def test_a_process_without_the_folder_imports_the_sent_files(folder, monkeypatch):
    files = files_of_module("package_of_mine")
    shutil.rmtree(folder / "package_of_mine")
    sys.path.remove(str(folder))
    forget()
    import_last([files])
    later = importlib.import_module("package_of_mine.parts.later")
    assert later.LATER == 2
    unpacked = Path(sys.path[-1])
    assert Path(later.__file__).is_relative_to(unpacked)
    assert unpacked.stat().st_mode & 0o777 == 0o700


def test_a_process_with_the_folder_uses_it_and_looks_there_last(folder):
    sys.path.remove(str(folder))
    import_last([files_of_module("package_of_mine")])
    assert sys.path[-1] == str(folder)
    assert os.path.dirname(importlib.import_module("types").__file__) == os.path.dirname(os.__file__)
