"""Extraction under faults: after any process is killed at any time, the same command ends with the same rows.

An undisturbed run gives the expected rows. Then, at random moments of a run of the command line, the driver, a
backbone actor or the worker of a decoding task is killed (kill -9), and the same command is run until it succeeds. The
stores are compared with plain pyarrow: the same ids, each once, identical positions, features within 2 units in the
last place of float16.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.dataset
from common import folder_of, parser, report

from scale_ray.corpus.sample_videos import make_samples

# Parts of the titles that Ray gives to its processes.
TITLES = {"actor": "EmbedBlock", "decoder": "decode_block"}


def command(videos: Path, store: Path) -> list[str]:
    options = ["--backbone", "mobilenet_v3_small", "--weights", "none", "--input-px", "160", "--shard-videos", "4"]
    return [sys.executable, "-m", "scale_ray", "extract", str(videos), "--store", str(store), "-q", *options]


def start(videos: Path, store: Path) -> subprocess.Popen:
    return subprocess.Popen(command(videos, store), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen) -> int:
    """The exit code of a command, which must have succeeded or been killed."""
    _, errors = process.communicate(timeout=600)
    assert process.returncode in (0, 3, -signal.SIGKILL), errors
    return process.returncode


def victim(driver: subprocess.Popen, kind: str) -> psutil.Process | None:
    """The process to kill: the driver itself, or a worker of its Ray that has the title of this kind."""
    if kind == "driver":
        return psutil.Process(driver.pid)
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if TITLES[kind] in " ".join(process.cmdline()):
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def run_with_kill(videos: Path, store: Path, kind: str, at_s: float) -> dict:
    """Run the command, kill a process after `at_s` seconds, and run the command again until it succeeds."""
    driver = start(videos, store)
    began_s, killed_after_s = time.monotonic(), None
    while killed_after_s is None and driver.poll() is None:
        time.sleep(0.05)
        if time.monotonic() - began_s < at_s:
            continue
        process = victim(driver, kind)
        if process is not None:
            process.kill()
            killed_after_s = round(time.monotonic() - began_s, 2)
    code = wait_for(driver)
    rows_then = len(read(store)[0]) if (store / "features").exists() else 0
    commands = 1
    while code not in (0, 3):
        code = wait_for(start(videos, store))
        commands += 1
    return {"killed_after_s": killed_after_s, "rows_when_the_first_command_ended": rows_then, "commands": commands}


def read(store: Path) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Keys, features and positions in the order of the keys, read with pyarrow alone."""
    ids: list[tuple[str, str]] = []
    features, positions = [], []
    for path in sorted((store / "features").glob("*.parquet")):
        table = pyarrow.dataset.dataset(path).to_table()
        ids += zip(table["video_id"].to_pylist(), table["mode"].to_pylist(), strict=True)
        for name, arrays in (("features", features), ("positions", positions)):
            arrays += [clips.values.flatten().to_numpy() for clips in table[name]]
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    return (
        [ids[row] for row in order],
        np.concatenate([features[row] for row in order] or [np.empty(0, np.float16)]),
        np.concatenate([positions[row] for row in order] or [np.empty(0, np.float32)]),
    )


def units_apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference between two float16 arrays, in units in the last place."""

    def steps(values: np.ndarray) -> np.ndarray:
        bits = values.view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    return int(np.abs(steps(a) - steps(b)).max())


def compare(store: Path, expected: Path) -> dict:
    ids, features, positions = read(store)
    expected_ids, expected_features, expected_positions = read(expected)
    differences = {
        "rows": len(ids),
        "missing": len(set(expected_ids) - set(ids)),
        "twice": len(ids) - len(set(ids)),
        "positions identical": bool(np.array_equal(positions, expected_positions)),
        "features apart, in float16 units": units_apart(features, expected_features),
    }
    assert ids == expected_ids, differences
    assert differences["positions identical"], differences
    assert differences["features apart, in float16 units"] <= 2, differences
    return differences


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=10, help="number of kills per kind")
    arguments.add_argument("--kinds", default="driver,actor,decoder", help="processes to kill, separated by commas")
    arguments.add_argument("--per-class", type=int, default=10, help="sample videos per class, of 4 classes")
    arguments.add_argument("--earliest", type=float, default=0.4, help="earliest kill, as a fraction of the run")
    arguments.add_argument("--latest", type=float, default=1.0, help="latest kill, as a fraction of the run")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the times of the kills")
    given = arguments.parse_args()
    moments = random.Random(given.seed)
    with folder_of(given) as folder:
        videos = folder / f"samples-{given.per_class}"
        if not videos.exists():
            list(make_samples(videos, given.per_class))
        expected = folder / "undisturbed"
        shutil.rmtree(expected, ignore_errors=True)
        began_s = time.monotonic()
        wait_for(start(videos, expected))
        took_s = time.monotonic() - began_s
        figures: dict[str, object] = {"undisturbed_s": round(took_s, 1), "rows": len(read(expected)[0])}
        for kind in given.kinds.split(","):
            runs = []
            for _ in range(given.kills):
                store = folder / "disturbed"
                at_s = moments.uniform(given.earliest * took_s, given.latest * took_s)
                killed: dict = {"killed_after_s": None}
                while killed["killed_after_s"] is None:
                    shutil.rmtree(store, ignore_errors=True)
                    killed = run_with_kill(videos, store, kind, at_s)
                    at_s *= 0.8  # in case the run ended before the kill
                runs.append(killed | compare(store, expected))
                print(kind, runs[-1], file=sys.stderr, flush=True)
            figures[kind] = runs
        report("faults", given, figures)


if __name__ == "__main__":
    main()
