"""The versions where a job is submitted, compared with those where it runs: the code travels, the libraries do not."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.files.small_files import read_json

# In the working folder of the job.
VERSIONS_FILE = "scale_ray_versions.json"
_LIBRARIES = ("ray", "torch", "torchvision", "av", "pyarrow", "mlflow", "click")


def versions_here() -> dict[str, str]:
    """The versions of Python and of the libraries that decide results and formats, by name; of those installed."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def write_versions(folder: Path) -> None:
    """Write the versions here into the working folder of a job."""
    (folder / VERSIONS_FILE).write_text(json.dumps(versions_here(), indent=1))


def compare_versions(folder: str = ".") -> None:
    """In a job, compare the versions with those where it was submitted; a difference is one line in the log.

    Raises
    ------
    UserError
        If a library is missing here.
    """
    path = Path(folder, VERSIONS_FILE)
    sent, here = read_json(str(path), "the versions where the job was submitted", {}), versions_here()
    missing = [f"{name} {sent[name]}" for name in sent if name not in here]
    if missing:
        raise UserError(f"expected {', '.join(missing)} on the cluster as where the job was submitted, found none")
    differing = [
        f"{name} {here[name]} (submitted with {sent[name]})"
        for name in sent
        if _public(here[name]) != _public(sent[name])
    ]
    if differing:
        Console().say(f"other versions on this cluster: {', '.join(differing)}")


def _public(version_text: str) -> str:
    """A version without the build of a machine, such as that for its GPU."""
    return str(version_text).partition("+")[0]
