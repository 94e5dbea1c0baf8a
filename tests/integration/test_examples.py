"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.command import PROJECT

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]
EXAMPLES = PROJECT / "examples"


def test_the_quickstart_script_runs(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "32 of 35 videos are in" in ended.stdout
    assert "with trained aggregator" in ended.stdout
    assert ended.stdout.count("approach/approach_000.mp4") == 1, (
        "the table of vectors; a query is not its own neighbour"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]


def test_the_notebook_runs_and_shows_tables_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert sum("data:image/png;base64" in html for html in shown) == 3, "losses, results and neighbours"
    assert any("<table" in html for html in shown), "to_pandas()"
    assert "mask_ratio" in outputs[-1]["text"], "the refusal names the option that was meant"
