"""Runs the command line in a separate process, as a user does, and locates the real media."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared"
BACKBONE = ("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--input-px", "64")


@dataclass(frozen=True)
class Ended:
    """The outcome of a command: exit code and output."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@dataclass(frozen=True)
class Extracted:
    """A store, and the outcome of the command that made it."""

    store: Path
    ended: Ended


def run_command(*arguments: object, cwd: Path | None = None, timeout_s: float = 300) -> Ended:
    """Run `scale-ray ARGUMENTS` and wait until it ends."""
    ended = subprocess.run(
        [sys.executable, "-m", "scale_ray", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout_s,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)
