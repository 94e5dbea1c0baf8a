"""The command line in a process of its own, as a user runs it, and where the real media are."""

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
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@dataclass(frozen=True)
class Extracted:
    """A store, and how the command that made it ended."""

    store: Path
    ended: Ended


def run_command(*arguments: object, cwd: Path | None = None, timeout_s: float = 200) -> Ended:
    """Run `scale-ray ARGUMENTS` to its end."""
    ended = subprocess.run(
        [sys.executable, "-m", "scale_ray", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout_s,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)
