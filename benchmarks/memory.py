"""Memory of an extraction of few and of many videos: does it grow with the corpus?

The figure is the peak over the run of the memory of all its processes (driver, Ray, decoders, actors), sampled every
two seconds. It sums their proportional set sizes, so that shared memory counts once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import folder_of, make_video, parser, report


def memory_mib(parent: psutil.Process) -> dict[str, float]:
    """Proportional set sizes of a process tree by role, in MiB."""
    roles = {"driver": 0.0, "decoders": 0.0, "actors": 0.0, "ray": 0.0}
    for process in [parent, *parent.children(recursive=True)]:
        try:
            title, size = " ".join(process.cmdline()), process.memory_full_info().pss / 2**20
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid == parent.pid:
            role = "driver"
        elif "decoder_process" in title or "decode_block" in title:
            role = "decoders"
        else:
            role = "actors" if "EmbedBlock" in title else "ray"
        roles[role] += size
    return roles


def peak(videos: Path, store: Path, backbone: list[str]) -> dict[str, Any]:
    """Extract some videos: the memory by role at the peak, the peak in each tenth of the run, and the seconds."""
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, "-m", "scale_ray", "extract", str(videos), "--store", str(store), "-q", *backbone]
    began_s = time.monotonic()
    python_path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": python_path})
    highest: dict[str, float] = {}
    totals: list[float] = []
    while process.poll() is None:
        try:
            now = memory_mib(psutil.Process(process.pid))
        except psutil.NoSuchProcess:
            break
        total = sum(now.values())
        totals.append(total)
        if total > highest.get("total", 0):
            highest = {"total": total, **now}
        time.sleep(2)  # each sample makes the kernel walk through all pages
    assert process.wait() == 0
    tenths = [max(part) for part in np.array_split(totals, min(10, len(totals)))]
    return {name: round(value) for name, value in highest.items()} | {
        "highest total in each tenth of the run": [round(value) for value in tenths],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--counts", type=int, nargs="+", default=[50, 500], help="number of videos of each run")
    arguments.add_argument("--backbone", default="paced:paced", help="backbone, slower than the decoders")
    given = arguments.parse_args()
    backbone = ["--backbone", given.backbone, "--weights", "none", "--mode", "train"]
    figures: dict[str, object] = {}
    with folder_of(given) as folder:
        source = make_video(folder / "10s-250.mp4", duration_s=10, key_every=250)
        for count in given.counts:
            videos = folder / f"memory-{count}"
            videos.mkdir(exist_ok=True)
            for number in range(count):
                if not (videos / f"{number:05d}.mp4").exists():
                    os.link(source, videos / f"{number:05d}.mp4")
            figures[f"{count} videos"] = peak(videos, folder / "store-memory", backbone)
            print(count, figures[f"{count} videos"], file=sys.stderr, flush=True)
    few, many = (figures[f"{count} videos"]["total"] for count in (given.counts[0], given.counts[-1]))  # type: ignore[index]
    figures["many over few"] = round(many / few, 3)
    report("memory", given, figures)


if __name__ == "__main__":
    main()
