"""The code blocks of the documents, and how they are run: in order, as they are written, with quick options."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.command import PROJECT

# Options that make every command quick; a flag or keyword in a block overrides them.
QUICK = {
    "weights": "none",
    "input_px": 32,
    "frames": 4,
    "epochs": 3,
    "batch": 16,
    "workers": "1",
    "prediction_hidden": 32,
    "target_hidden": 32,
    "probe_epochs": 1,
    "probe_min_steps": 5,
    "deep_epochs": 1,
    "deep_min_steps": 5,
    "resamples": 50,
}
# Commands whose short form stands for them; an activated environment is what the test runs in.
INSTEAD = {"make demo": "scale-ray demo --videos-per-class 8 --epochs 3"}
WITHOUT_EFFECT = (". .venv/bin/activate", "make install")
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+?) -->\n)?```(?P<kind>console|python)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A block of a document: `reason` says why it is not run, if it is not."""

    kind: str
    text: str
    line: int
    reason: str | None


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text()
    return [
        Block(match["kind"], match["text"], text.count("\n", 0, match.start()) + 1, match["reason"])
        for match in _FENCE.finditer(text)
    ]


def commands_of(block: Block) -> Iterator[str]:
    """The commands of a console block: lines that begin with `$ `, with their continuations."""
    lines = iter(block.text.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command = command[:-1] + " " + next(lines).strip()
            command = command.split("  #")[0].strip()
            if command not in WITHOUT_EFFECT:
                yield INSTEAD.get(command, command)


def environment() -> dict[str, str]:
    quick = {f"SCALE_RAY_{name.upper()}": str(value) for name, value in QUICK.items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **quick, "PATH": path, "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}"}


def run_block(block: Block, folder: Path) -> None:
    """Run a block in a folder; exit code 3 (some videos failed) is a success."""
    if block.kind == "python":
        _run([sys.executable, "-m", "support.documents"], folder, block.text)
        return
    for command in commands_of(block):
        _run(["bash", "-c", command], folder)


def _run(arguments: list[str], folder: Path, text: str = "") -> None:
    ended = subprocess.run(
        arguments, cwd=folder, env=environment(), input=text, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode in (0, 3), f"{arguments[-1]}\n{text}\n{ended.stdout[-1000:]}\n{ended.stderr[-2000:]}"


def main() -> None:
    """Run a Python block from standard input with the quick options."""
    from scale_ray.config import StageConfig

    replaced = StageConfig.replaced

    def quickly(config: StageConfig, **options: object) -> StageConfig:
        known = config.option_sections()
        quick = {name: value for name, value in QUICK.items() if name in known}
        return replaced(config, **{**quick, **options})

    StageConfig.replaced = quickly  # type: ignore[method-assign, assignment]
    exec(compile(sys.stdin.read(), "<block>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
