"""A user's own module on its way to processes on other machines, whose disks may not have it.

Installed packages do not travel: every node has the same ones. Of other modules the Python files do: those of the
module's package, and those beside it that it has imported. A process prefers its own copy in the same folder, as on a
shared disk, and unpacks the others into a private folder; either is searched last, after all libraries.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scale_ray.files.import_path import folder_of_module, import_last_from


@dataclass(frozen=True)
class ModuleFiles:
    """Python files by their path relative to the folder that they are imported from."""

    folder: str
    contents: Mapping[str, bytes]


def files_of_module(name: str) -> ModuleFiles | None:
    """The files of an imported module and of what it imported from its folder; None if it is installed or built in."""
    folder = folder_of_module(name)
    if folder is None or is_installed(folder):
        return None
    top = Path(folder, name.partition(".")[0])
    paths = sorted({*_imported_from(folder), *top.rglob("*.py")})
    return ModuleFiles(
        folder, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}
    )


def import_last(modules: Iterable[ModuleFiles]) -> None:
    """Let imports find these modules where no library has their names."""
    for module in modules:
        is_here = all(os.path.exists(os.path.join(module.folder, path)) for path in module.contents)
        import_last_from([module.folder if is_here else _unpacked(module)])


def is_installed(folder: str) -> bool:
    """Whether a folder that modules are imported from is one of the libraries of this Python."""
    own = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return os.path.realpath(folder) in own or os.path.basename(folder) in ("site-packages", "dist-packages")


def _imported_from(folder: str) -> Iterator[Path]:
    """Files of modules that this process has imported from a folder itself, not from one within it."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name.partition(".")[0] == "scale_ray":
            continue
        path = os.path.join(folder, *name.split("."))
        if (found := os.path.abspath(file)) in (f"{path}.py", os.path.join(path, "__init__.py")):
            yield Path(found)


def _unpacked(module: ModuleFiles) -> str:
    """A new private folder with the files, removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="scale-ray-module-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path, content in module.contents.items():
        file = Path(folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder
