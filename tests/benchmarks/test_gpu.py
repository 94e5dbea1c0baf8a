"""The benchmark for GPUs is ready when a GPU is: here every part runs on the CPU, at tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
BENCHMARKS = PROJECT / "benchmarks"
# The only figures that a CPU cannot give.
NOT_ON_CPU = {
    "not measured: needs a CUDA device",
    "not measured: a convolution in float16 takes seconds on a CPU",
    "not measured: a tiny run does not compile",
}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (PROJECT, BENCHMARKS, PROJECT / "tests")))
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def leaves(table: Any) -> Iterator[Any]:
    if isinstance(table, dict):
        for value in table.values():
            yield from leaves(value)
    else:
        yield table


@pytest.mark.ray
@pytest.mark.xdist_group("cluster")
@pytest.mark.timeout(650)
def test_every_part_runs_on_the_cpu(tmp_path: Path):
    ended = run(BENCHMARKS / "gpu.py", "--tiny", "--device", "cpu", "--out", tmp_path / "gpu.json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["ended"] for part in results["parts"].values()} == {"done"}
    assert set(results["figures"]) == set(results["parts"])
    assert results["device"] == "CPU"
    assert {"torch", "python"} <= set(results["hardware"])
    texts = {value for value in leaves(results["figures"]) if isinstance(value, str)}
    assert texts <= {*NOT_ON_CPU, "decoding", "the backbone"}
    agreement = results["figures"]["agreement"]
    assert agreement["weights of a continued run"] == {"continued against undisturbed": 0.0, "undisturbed, twice": 0.0}
    # Even exact on one device, but computed in other orders than the plain transcription.
    assert agreement["losses and gradients against the CPU"]["float32, exact"]["gradients"] < 1e-4
    assert results["figures"]["probes"]["k-NN"]["same class as on the CPU"] == 1.0
    assert results["figures"]["probes"]["k-NN"]["plain, same class as on the CPU"] == 1.0


def test_the_plan_fits_into_eight_minutes():
    ended = run(BENCHMARKS / "gpu.py", "--plan")
    *parts, total = ended.stdout.splitlines()
    expected_s = [int(line.split(" s ")[0]) for line in parts]
    assert len(parts) == 8
    assert total.split() == [str(sum(expected_s)), "s", "in", "all,", "of", "480", "s"]
    assert sum(expected_s) <= 480
    assert ended.stdout in (BENCHMARKS / "README.md").read_text()


FAILURES = """
import sys, gpu
names = "raises dies hangs lacks_a_figure works".split()
gpu.PLAN = (*(gpu.Part(name, "support.gpu_failures", name, 12) for name in names),
            gpu.Part("too late", "support.gpu_failures", "works", 3600))
sys.argv = ["gpu.py", "--device", "cpu", "--tiny", "--minutes", "2", "--out", sys.argv[1]]
sys.exit(gpu.main())
"""


@pytest.mark.slow
def test_a_part_that_fails_costs_its_own_figures_only(tmp_path: Path):
    ended = run("-c", FAILURES, tmp_path / "gpu.json")
    assert ended.returncode == 1, ended.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["ended"] for name, part in results["parts"].items() if name != "too late"} == {
        "raises": "failed: RuntimeError: no such kernel",
        "dies": "failed: the process ended with exit code 9",
        "hangs": "stopped after 24 s",
        "lacks_a_figure": "1 figures failed",
        "works": "done",
    }
    assert results["parts"]["too late"]["ended"].startswith("not run: ")
    assert results["figures"] == {
        "raises": {"first": 1},
        "dies": {"first": 2},
        "hangs": {"first": 3},
        "lacks_a_figure": {"table": {"broken": "failed: ZeroDivisionError: division by zero", "whole": 4}},
        "works": {"first": 5},
    }


WITHOUT = """
import sys
sys.modules.update(ray=None, av=None, mlflow=None)
import gpu
from gpu_parts import actor, agreement, backbones, extraction, pretraining, probes
print("imported")
"""


@pytest.mark.slow
def test_the_first_part_needs_neither_ray_nor_pyav_nor_mlflow():
    ended = run("-W", "error", "-c", WITHOUT)
    assert ended.stdout == "imported\n", ended.stderr


def test_a_missing_gpu_is_one_line():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    ended = run(BENCHMARKS / "gpu.py")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "device: expected a CUDA device, found none; for a trial, --tiny --device cpu\n"


def test_time_that_is_covered_twice_counts_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from gpu_parts.measure import covered

    assert covered([]) == 0
    assert covered([(5, 7), (0, 4), (1, 2), (3, 6)]) == 7
    assert covered([(0, 1), (2, 3)]) == 2


def test_the_plain_losses_are_those_of_the_objective(monkeypatch: pytest.MonkeyPatch):
    """Otherwise the comparison would be one of different computations."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import torch
    from gpu_parts.measure import Bench
    from gpu_parts.pretraining import fixed_of, plain_of, trainer_for
    from pretraining_steps import batch_of

    trainer = trainer_for(Bench(torch.device("cpu"), True, Path("/nowhere"), lambda *_: None), 16)
    trainer.aggregator.eval()
    batch = batch_of(trainer)
    tokens = trainer.aggregator(batch.features_SVD, batch.positions_SV7, batch.masked_SV)
    expected = trainer.objective(*tokens, batch.features_SVD, batch.masked_SV).loss
    for loss_of in (plain_of, fixed_of):
        assert loss_of(trainer, batch)().item() == pytest.approx(expected.item(), rel=1e-5)
