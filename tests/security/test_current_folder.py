"""A file in the current folder does not run instead of a library of its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import BACKBONE, PROJECT, Command

LIBRARIES = ("av", "types", "numpy", "pyarrow", "torch", "wave")
DECODER = """
from scale_ray.decoding import Decoder
with Decoder(timeout_s=60, memory_gib=8) as decoder:
    print(decoder.call({function}))
"""
WORKER = """
import json, os, sys
import ray
from scale_ray.config import Cluster
from scale_ray.distributed.cluster import connected

def imported():
    import wave
    return wave.__file__, sys.path

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    with connected(Cluster(cpus=1)):
        print(json.dumps(ray.get(ray.remote(imported).remote())))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of the name of each library; each file notes which process has run it."""
    for name in LIBRARIES:
        (tmp_path / f"{name}.py").write_text(
            f"import sys\nopen({str(tmp_path / 'ran')!r}, 'a').write('{name} in ' + str(sys.orig_argv) + chr(10))\n"
        )
    return tmp_path


def ran(folder: Path) -> str:
    return (folder / "ran").read_text() if (folder / "ran").exists() else ""


def python(folder: Path, *arguments: str, pythonpath: str = "") -> str:
    """Run Python in the folder, by itself without the folder on its path; returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), pythonpath)))}
    ended = subprocess.run(
        [sys.executable, "-P", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_decoder_process_imports_nothing_from_the_current_folder(folder: Path):
    assert python(folder, "-c", DECODER.format(function="len, (1, 2)")) == "2\n"
    assert ran(folder) == ""


def test_the_decoder_process_does_not_inherit_the_current_folder(folder: Path):
    """As `python -m` and Ray put it there: first, as a whole path."""
    code = DECODER.format(function="sum, (1, 2)")
    first = "import sys, os, types, av, numpy\nsys.path.insert(0, os.getcwd())\n"
    assert python(folder, "-c", first + code) == "3\n"
    assert ran(folder) == ""


def test_the_decoder_process_has_a_folder_that_the_user_named(tmp_path: Path):
    (tmp_path / "named.py").write_text("def answer(): return 42")
    code = f"import named\n{DECODER.format(function='named.answer')}"
    assert python(tmp_path, "-c", code, pythonpath=str(tmp_path)) == "42\n"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("pythonpath", ["", os.pathsep], ids=["unset", "with an empty entry"])
def test_the_workers_of_ray_do_not_import_from_the_current_folder(folder: Path, pythonpath: str):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "script.py").write_text(WORKER)
    # An empty entry stands for the current folder: this process must start in another one.
    file, path = json.loads(python(elsewhere, "script.py", str(folder), pythonpath=pythonpath))
    assert str(folder) not in path
    assert Path(file).parent != folder
    assert ran(folder) == ""


@pytest.mark.ray
@pytest.mark.slow
def test_a_command_runs_no_file_of_the_current_folder(folder: Path, videos: Path):
    command = [Path(sys.executable).with_name("scale-ray"), "extract", f"{videos}/*/*_001.mp4"]
    ended = subprocess.run([*command, "--store", "store", "--cpus", "2", *BACKBONE], cwd=folder, check=False)
    assert ended.returncode == 0
    assert ran(folder) == ""


@pytest.mark.ray
@pytest.mark.slow
def test_a_backbone_in_the_current_folder_brings_no_other_file_of_it(folder: Path, videos: Path, scale_ray: Command):
    (folder / "types.py").unlink()  # `python -m` itself imports it, before anything of this package
    (folder / "helper_of_mine.py").write_text("INPUT_PX = 32")
    (folder / "backbone_of_mine.py").write_text(
        "import torch\nfrom helper_of_mine import INPUT_PX\n\n\n"
        "class Mine(torch.nn.Flatten):\n"
        "    input_px = INPUT_PX\n"
        "    def forward(self, clips):\n"
        "        return clips.mean((3, 4)).flatten(1)\n"
    )
    options = ("--store", "store", "--cpus", 2, "--frames", 4, "--backbone", f"backbone_of_mine:Mine,{BACKBONE[1]}")
    ended = scale_ray("extract", f"{videos}/*/*_001.mp4", *options, "--weights", "none", cwd=folder)
    assert ended.code == 0, ended.err
    assert ran(folder) == ""
