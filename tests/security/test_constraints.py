"""Installed files are checked by their hash: every pinned package has hashes, and every dependency is pinned."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def pinned() -> dict[str, str]:
    """What follows the version of each package in constraints.txt, by the package's name."""
    text = (PROJECT / "constraints.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {normalised(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def test_every_pinned_package_has_hashes():
    without = [name for name, rest in pinned().items() if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest)]
    assert without == []
    assert len(pinned()) > 100


def test_every_dependency_is_pinned():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *(name for group in project["optional-dependencies"].values() for name in group),
    ]
    names = {normalised(re.match(r"[A-Za-z0-9._-]+", requirement)[0]) for requirement in needed}
    assert names - {"scale-ray"} - set(pinned()) == set()


def test_the_installation_checks_them():
    assert "--require-hashes --requirement constraints.txt" in (PROJECT / "Makefile").read_text()
