"""Where this program's processes import from: not from a folder only because somebody stood in it at the start.

Python and Ray put the current folder before all libraries. A file `av.py` or `types.py` in it, unpacked with a data
set, would run instead of the library of that name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

_PACKAGE_FOLDER = str(Path(__file__).resolve().parents[2])


def safe_path() -> list[str]:
    """`sys.path` without the current folder, unless PYTHONPATH names it or this package is in it."""
    kept = {*_named_folders(), _PACKAGE_FOLDER}
    current = os.path.realpath(_current_folder())
    return [entry for entry in sys.path if entry and (os.path.realpath(entry) != current or current in kept)]


def without_empty_entries(pythonpath: str) -> str:
    """A value of PYTHONPATH without empty entries, which mean the current folder: `:/x` and `/x:` are accidents."""
    return os.pathsep.join(filter(None, pythonpath.split(os.pathsep)))


def package_folder_to_name() -> list[str]:
    """The folder of this package if another process of this Python would not find it: it is not installed."""
    found_anyway = {*map(os.path.realpath, sys.path[1:]), *_named_folders()}
    return [] if _PACKAGE_FOLDER in found_anyway else [_PACKAGE_FOLDER]


def folder_of_module(name: str) -> str | None:
    """The folder from which an imported module's top package was imported; None if it is not in a file."""
    top = sys.modules[name.partition(".")[0]]
    if paths := list(getattr(top, "__path__", [])):
        return os.path.dirname(os.path.abspath(paths[0]))
    file = getattr(top, "__file__", None)
    return os.path.dirname(os.path.abspath(file)) if file else None


def import_last_from(folders: Iterable[str]) -> None:
    """Let imports find in these folders what is nowhere else; nothing in them takes the place of a library."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)


def _named_folders() -> set[str]:
    return {os.path.realpath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return os.devnull
