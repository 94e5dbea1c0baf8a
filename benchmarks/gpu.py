"""All that needs a GPU, measured by one command in under eight minutes, without a network.

Each part runs in a process of its own, the most telling first. Every figure is written when it is measured: a part that
fails, hangs or runs out of its time costs its own remaining figures only. No part starts after the time is up.

    PYTHONPATH=. python benchmarks/gpu.py                     on a GPU, to benchmarks/results/gpu.json
    PYTHONPATH=. python benchmarks/gpu.py --plan              only the plan: the parts and their expected seconds
    PYTHONPATH=. python benchmarks/gpu.py --tiny --device cpu every part once at tiny sizes: whether it would run

Needs the packages of the project except Ray, PyAV and MLflow; with Ray and PyAV it also measures the real stream.
`gpu_parts` describes each part; benchmarks/README.md says what to bring to a machine without a network.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import RESULTS, hardware


@dataclass(frozen=True)
class Part:
    """A function of a module in `gpu_parts`, and the seconds that it is expected to take on a data centre GPU."""

    name: str
    module: str
    function: str
    expected_s: int


# The order is that of what is most worth knowing; compiling, the slowest and the least certain, is last.
PLAN = (
    Part("backbones", "gpu_parts.backbones", "run", 85),
    Part("pretraining", "gpu_parts.pretraining", "run", 75),
    Part("actor", "gpu_parts.actor", "run", 30),
    Part("agreement", "gpu_parts.agreement", "run", 40),
    Part("extraction", "gpu_parts.extraction", "run", 70),
    Part("probes", "gpu_parts.probes", "run", 40),
    Part("pretraining, compiled", "gpu_parts.pretraining", "run_compiled", 35),
    Part("backbones, compiled", "gpu_parts.backbones", "run_compiled", 90),
)
# A part may take this many times its expected seconds, if there is time left.
_PATIENCE = 2
_VIDEOMAE = "transformers.models.videomae.modeling_videomae"


class Results:
    """The results file, written anew after every figure."""

    def __init__(self, path: Path | None, head: dict[str, Any]) -> None:
        self._path = path
        self.record: dict[str, Any] = {**head, "parts": {}, "figures": {}}

    def add(self, part: str, name: tuple[str, ...], value: Any) -> None:
        table = self.record["figures"].setdefault(part, {})
        for key in name[:-1]:
            table = table.setdefault(key, {})
        table[name[-1]] = value
        self._write()

    def end(self, part: Part, ended: str, took_s: float) -> None:
        self.record["parts"][part.name] = {
            "expected s": part.expected_s,
            "took s": round(took_s, 1),
            "ended": ended,
        }
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.record, indent=1) + "\n")
        os.replace(unfinished, self._path)


def run_part(part: Part, device: str, tiny: bool, folder: str, pipe: Connection) -> None:
    """Run a part in this process; figures, then how it ended, go through the pipe."""
    import torch
    from gpu_parts.measure import Bench

    try:
        bench = Bench(torch.device(device), tiny, Path(folder), lambda name, value: pipe.send((name, value)))
        getattr(importlib.import_module(part.module), part.function)(bench)
        ended = f"{bench.num_failed} figures failed" if bench.num_failed else "done"
    except BaseException as error:  # noqa: BLE001
        traceback.print_exc()
        ended = f"failed: {type(error).__name__}: {error}"
    pipe.send((None, ended))


def supervise(part: Part, device: str, tiny: bool, folder: str, allowed_s: float, results: Results) -> str:
    """Run a part in a new process, for at most `allowed_s` seconds; returns how it ended."""
    context = multiprocessing.get_context("forkserver")
    # The server imports once what every part needs, so that its processes start in milliseconds. A process that uses
    # CUDA must not be forked, and the server does not; by NVML not even the question whether there is a GPU uses it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context.set_forkserver_preload(["gpu_parts.agreement", "gpu_parts.probes", _VIDEOMAE])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_part, args=(part, device, tiny, folder, theirs))
    deadline_s = time.monotonic() + allowed_s
    process.start()
    theirs.close()
    try:
        while ours.poll(max(deadline_s - time.monotonic(), 0)):
            name, value = ours.recv()
            if name is None:
                return str(value)
            results.add(part.name, name, value)
            print(f"  {', '.join(name)}: {json.dumps(value)}", flush=True)
        return f"stopped after {allowed_s:.0f} s"
    except EOFError:
        process.join()
        return f"failed: the process ended with exit code {process.exitcode}"
    finally:
        process.join(2)
        process.kill()
        process.join()


def run_plan(given: argparse.Namespace, results: Results, folder: str) -> bool:
    """Run the chosen parts until the time is up; returns whether all of them ended well."""
    deadline_s = time.monotonic() + 60 * given.minutes
    all_done = True
    for part in PLAN:
        if part.name not in given.parts:
            continue
        left_s = deadline_s - time.monotonic()
        began_s = time.monotonic()
        print(f"{part.name} (expected {part.expected_s} s, {left_s:.0f} s left)", flush=True)
        if left_s < part.expected_s / 3:
            ended = f"not run: {left_s:.0f} s left"
        else:
            allowed_s = min(_PATIENCE * part.expected_s, left_s)
            ended = supervise(part, given.device, given.tiny, folder, allowed_s, results)
        results.end(part, ended, time.monotonic() - began_s)
        print(f"  {ended}, {time.monotonic() - began_s:.1f} s", flush=True)
        all_done &= ended == "done"
    return all_done


def device_name(device: str) -> str:
    import torch

    if not device.startswith("cuda"):
        return "CPU"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def arguments() -> argparse.Namespace:
    names = [part.name for part in PLAN]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a trial; the figures mean nothing")
    parser.add_argument("--minutes", type=float, default=8, help="the time for everything (default: 8)")
    parser.add_argument("--parts", default=";".join(names), help="the parts to run, separated by semicolons")
    parser.add_argument(
        "--out", type=Path, help="results file (default: benchmarks/results/gpu.json, none with --tiny)"
    )
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    given = parser.parse_args()
    given.parts = [name.strip() for name in given.parts.split(";")]
    if unknown := [name for name in given.parts if name not in names]:
        parser.error(f"--parts: expected some of {'; '.join(names)}, found {'; '.join(unknown)}")
    return given


def main() -> int:
    given = arguments()
    if given.plan:
        for part in PLAN:
            print(f"{part.expected_s:4} s  {part.name}")
        print(f"{sum(part.expected_s for part in PLAN):4} s  in all, of {60 * given.minutes:.0f} s")
        return 0
    import torch

    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("device: expected a CUDA device, found none; for a trial, --tiny --device cpu", file=sys.stderr)
        return 2
    head = {
        "date": datetime.date.today().isoformat(),
        "device": device_name(given.device),
        "hardware": hardware(),
        "tiny": given.tiny,
    }
    out = given.out or (None if given.tiny else RESULTS / "gpu.json")
    results = Results(out, head)
    print(json.dumps(head), flush=True)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        all_done = run_plan(given, results, folder)
    print(f"{time.monotonic() - began_s:.0f} s in all{f', written to {out}' if out else ''}")
    return 0 if all_done else 1


if __name__ == "__main__":
    sys.exit(main())
