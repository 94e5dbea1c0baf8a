"""Kill the driver and an actor once each, as `benchmarks/faults.py` does ten times each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def test_whatever_is_killed_the_same_command_ends_with_the_same_rows(tmp_path):
    ended = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--kinds", "driver,actor"),
            *("--kills", "1", "--per-class", "6", "--seed", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)["figures"]
    assert figures["rows"] == 24
    for kind in ("driver", "actor"):
        [tried] = figures[kind]
        assert (tried["rows"], tried["missing"], tried["twice"]) == (24, 0, 0)
        assert tried["killed_after_s"] is not None, f"{kind}: the run was over before the kill"
