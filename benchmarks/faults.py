"""Extraction under faults: whatever is killed, and whenever, the same command ends with the same rows.

An undisturbed run says what is right. Then, at random moments of a run of the command line, the driver is
killed, or a backbone actor, or the worker of a decoding task (kill -9), and the same command is run until
it ends well. The stores are compared with plain pyarrow: the same ids, each once, identical positions,
features within 2 units in the last place of float16.
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

# How Ray names the processes that we kill, in their titles.
TITLES = {"actor": "EmbedBlock", "decoder": "decode_block"}


def command(videos: Path, store: Path) -> list[str]:
    options = ["--backbone", "mobilenet_v3_small", "--weights", "none", "--input-px", "160", "--shard-videos", "4"]
    return [sys.executable, "-m", "scale_ray", "extract", str(videos), "--store", str(store), "-q", *options]


def started(videos: Path, store: Path) -> subprocess.Popen:
    return subprocess.Popen(command(videos, store), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> int:
    _, said = process.communicate(timeout=600)
    assert process.returncode in (0, 3, -signal.SIGKILL), said
    return process.returncode


def victim(driver: subprocess.Popen, kind: str) -> psutil.Process | None:
    """The process to kill: the driver itself, or one of its Ray's workers by its title."""
    if kind == "driver":
        return psutil.Process(driver.pid)
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if TITLES[kind] in " ".join(process.cmdline()):
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def disturbed(videos: Path, store: Path, kind: str, at_s: float) -> dict:
    """Kill once at a moment; run the command until it ends well."""
    driver = started(videos, store)
    began_s, killed_after_s = time.monotonic(), None
    while killed_after_s is None and driver.poll() is None:
        time.sleep(0.05)
        if time.monotonic() - began_s < at_s:
            continue
        process = victim(driver, kind)
        if process is not None:
            process.kill()
            killed_after_s = round(time.monotonic() - began_s, 2)
    code = ended(driver)
    rows_then = len(read(store)[0]) if (store / "features").exists() else 0
    commands = 1
    while code not in (0, 3):
        code = ended(started(videos, store))
        commands += 1
    return {"killed_after_s": killed_after_s, "rows_when_the_first_command_ended": rows_then, "commands": commands}


def read(store: Path) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Keys, features and positions in the order of the keys, with pyarrow alone."""
    ids: list[tuple[str, str]] = []
    features, positions = [], []
    for path in sorted((store / "features").glob("*.parquet")):
        table = pyarrow.dataset.dataset(path).to_table()
        ids += zip(table["video_id"].to_pylist(), table["mode"].to_pylist(), strict=True)
        for name, into in (("features", features), ("positions", positions)):
            # Train and eval clips differ in number: compared as rows of numbers.
            for values in table[name].combine_chunks().to_numpy_ndarray():
                into.append(values.ravel())
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    return (
        [ids[row] for row in order],
        np.concatenate([features[row] for row in order] or [np.empty(0, np.float16)]),
        np.concatenate([positions[row] for row in order] or [np.empty(0, np.float32)]),
    )


def units_apart(a: np.ndarray, b: np.ndarray) -> int:
    """Largest distance of two float16 arrays in units in the last place."""

    def steps(values: np.ndarray) -> np.ndarray:
        bits = values.view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    return int(np.abs(steps(a) - steps(b)).max())


def compared(store: Path, right: Path) -> dict:
    ids, features, positions = read(store)
    right_ids, right_features, right_positions = read(right)
    found = {
        "rows": len(ids),
        "missing": len(set(right_ids) - set(ids)),
        "twice": len(ids) - len(set(ids)),
        "positions identical": bool(np.array_equal(positions, right_positions)),
        "features apart, in float16 units": units_apart(features, right_features),
    }
    assert ids == right_ids, found
    assert found["positions identical"], found
    assert found["features apart, in float16 units"] <= 2, found
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=10, help="kills of each kind")
    arguments.add_argument("--kinds", default="driver,actor,decoder", help="what is killed")
    arguments.add_argument("--per-class", type=int, default=10, help="sample videos of each of 4 classes")
    arguments.add_argument("--earliest", type=float, default=0.4, help="moment of the earliest kill, of the whole run")
    arguments.add_argument("--seed", type=int, default=0, help="of the moments")
    given = arguments.parse_args()
    moments = random.Random(given.seed)
    with folder_of(given) as folder:
        videos = folder / f"samples-{given.per_class}"
        if not videos.exists():
            list(make_samples(videos, given.per_class))
        right = folder / "undisturbed"
        shutil.rmtree(right, ignore_errors=True)
        began_s = time.monotonic()
        ended(started(videos, right))
        took_s = time.monotonic() - began_s
        figures: dict[str, object] = {"undisturbed_s": round(took_s, 1), "rows": len(read(right)[0])}
        for kind in given.kinds.split(","):
            tries = []
            for _ in range(given.kills):
                store = folder / "disturbed"
                at_s = moments.uniform(given.earliest * took_s, took_s)
                killed: dict = {"killed_after_s": None}
                while killed["killed_after_s"] is None:
                    shutil.rmtree(store, ignore_errors=True)
                    killed = disturbed(videos, store, kind, at_s)
                    at_s *= 0.8  # a faster run than the undisturbed one was over before: earlier, then
                tries.append(killed | compared(store, right))
                print(kind, tries[-1], file=sys.stderr, flush=True)
            figures[kind] = tries
        report("faults", given, figures)


if __name__ == "__main__":
    main()
