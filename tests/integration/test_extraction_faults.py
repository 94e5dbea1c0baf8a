"""Kill the driver once and an actor once; `benchmarks/faults.py` kills each ten times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# In the process of the cluster tests, since that of the tests with Ray takes longer.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.xdist_group("cluster")]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def test_whatever_is_killed_the_same_command_ends_with_the_same_rows(tmp_path):
    ended = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--kinds", "driver,actor"),
            *("--kills", "1", "--per-class", "6", "--latest", "0.6", "--seed", "1"),
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
        [result] = figures[kind]
        assert (result["rows"], result["missing"], result["twice"]) == (24, 0, 0)
        assert result["killed_after_s"] is not None, f"{kind}: the run ended before the kill"
