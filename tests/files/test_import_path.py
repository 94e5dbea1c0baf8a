"""Which folders the processes of a run import from."""

import os
import sys

from support.command import PROJECT

from scale_ray.files import import_path
from scale_ray.files.import_path import folder_of_module, import_last_from, package_folder_to_name, safe_path


def test_the_safe_path_keeps_all_but_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/somewhere", str(PROJECT)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    assert safe_path() == ["/somewhere", str(PROJECT)]
    assert package_folder_to_name() == []
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}")
    assert safe_path() == [str(tmp_path), "/somewhere", str(PROJECT)]


def test_a_folder_with_the_package_itself_is_kept_and_named(monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [str(PROJECT), "/somewhere"])
    assert safe_path() == [str(PROJECT), "/somewhere"]
    assert package_folder_to_name() == [str(PROJECT)]


def test_a_current_folder_that_was_deleted_is_none(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    assert safe_path() == ["/somewhere"]


def test_a_module_and_a_package_have_a_folder_and_a_builtin_has_none():
    assert folder_of_module("scale_ray.files.import_path") == str(PROJECT)
    assert folder_of_module("textwrap") == os.path.dirname(os.__file__)
    assert folder_of_module("sys") is None


def test_a_folder_is_added_once_and_last(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/first"])
    import_last_from(["/first", "/last"])
    assert sys.path == ["/first", "/last"]


def test_empty_entries_are_taken_from_pythonpath():
    assert import_path.without_empty_entries(":/x::/y:".replace(":", os.pathsep)) == os.pathsep.join(("/x", "/y"))
    assert import_path.without_empty_entries("") == ""
