"""A hundred damaged files of other people: each gives clips or a reason; file n of a seed is always the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import SHARED

PROJECT = Path(__file__).parents[2]
BENCHMARKS = PROJECT / "benchmarks"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (PROJECT, BENCHMARKS)))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "odd").is_dir(), reason="needs the videos in ../shared/odd")
def test_a_hundred_damaged_files_give_clips_or_a_printable_reason(tmp_path):
    ended = run("fuzz.py", SHARED / "odd", "--count", 100, "--seed", 7, "--max-bytes", 300_000, "--folder", tmp_path)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)["figures"]
    assert sum(figures["outcomes"].values()) == figures["files"] == 100
    assert figures["wrong"] == {}
    assert figures["outcomes"]["done"] > 10, "the damage is too strong to test the decoder"
    assert figures["outcomes"]["refused"] > 10, "the damage is too weak to test the decoder"
    assert sum(figures["reasons"].values()) == 100 - figures["outcomes"]["done"]
    assert list(tmp_path.iterdir()) == [], "files for which everything holds are removed"


def test_a_file_has_the_same_damage_every_time(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz

    paths = [Path("a.mp4"), Path("b.avi")]
    contents = [b"....ftypmoov....mvhd" * 100, b"RIFF....AVI LIST....avih" * 100]
    first = [fuzz.damaged(paths, contents, 3, number) for number in range(200)]
    assert first == [fuzz.damaged(paths, contents, 3, number) for number in range(200)]
    assert first != [fuzz.damaged(paths, contents, 4, number) for number in range(200)]
    assert len({file.content for file in first}) > 190
    kinds = {kind for file in first for kind in file.made_by.partition(": ")[2].split(", ")}
    assert kinds == {damage.__name__ for damage in fuzz.DAMAGES}
