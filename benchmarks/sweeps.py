"""What a sweep costs, and what early stopping and a model-based search are worth.

    overhead     one sweep of 100 tiny trials: the time of a trial beyond its training, and the memory of the processes
    stopping     a random search with ASHA, compared with the same one in which all trials run to the end
    search       the best objective so far by trial: Optuna compared with a random search
    real STORE   a grid on a given store: wall time, the settings with their intervals, and the heat map

Each part runs the command `scale-ray sweep` on two CPUs, and replaces its own section of `results/sweeps.json`.

The first three use an invented store (`planted_store.py`): a clip tells nothing of the class there, a set of clips
all of it. The trainings are so short that their scores are far from saturated, and differ between settings. What early
stopping and Optuna gain on it is one example, and no promise for another space or another store.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import RESULTS, folder_of, hardware, parser
from planted_store import make_planted_store

from scale_ray.search import FINISHED, STOPPED, TrialResult, TrialResults, ranked

SLOTS = 2
MIB = 2**20
# The memory at a number of ended trials is the mean of so many samples, those nearest to it.
NEAREST = 3
# How Ray names the process of a trial while it waits, and while it trains.
TRIAL_TITLES = ("ray::TrialProcess", "ray::ResourceTrainable")
# By default Ray runs its workers with a niceness of 15: beside another program they would hardly get any time.
NICENESS = {"RAY_worker_niceness": "0"}

SMALL_HEADS = "--prediction-hidden 128 --target-hidden 128"
OVERHEAD = (
    "--mask-ratio 0.05,0.1,0.15,0.2,0.25,0.3,0.35,0.4,0.45,0.5 --set-size 1,2,4,6,8 --seeds 2 --epochs 2 --batch 16 "
    f"--width 32 --layers 1 {SMALL_HEADS}"
)
# Two folds: half of the videos are validated on, for a fine score. Validations every two epochs, for ASHA.
TRAINING = f"--folds 2 --seeds 1 --epochs 16 --monitor-epochs 2 --batch 50 --width 64 {SMALL_HEADS}"
STOPPING = "--search random --learning-rate log:2e-4..1e-2 --layers 1,2 --mask-ratio 0.05..0.6 --set-size 3..8"
SEARCHED = (
    "--layers 1 --learning-rate log:2e-4..1e-2 --weight-decay log:1e-4..1 --set-size 2..8 --mask-ratio 0.05..0.7 "
    "--set-temperature log:0.05..1"
)
REAL = "--mask-ratio 0.15,0.25,0.5 --set-size 4,8,16 --seeds 3"


@dataclass(frozen=True)
class Sample:
    """The resident memory of a sweep's processes in MiB, at a number of ended trials."""

    num_ended: int
    driver_mib: float
    trials_mib: list[float]
    rest_mib: float


@dataclass
class Sweep:
    """A sweep that has been run by the command: its trials, and what was seen of it from outside."""

    command: str
    wall_s: float
    load_before: float
    cores_of_others: float
    trials: list[TrialResult]
    folder: Path
    samples: list[Sample] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "trials": len(self.trials),
            "wall_s": round(self.wall_s, 1),
            "trial_seconds": round(sum(trial.seconds for trial in self.trials), 1),
            "first_begin_to_last_end_s": round(max(map(ended_s, self.trials)) - self.trials[0].began_s, 1),
            "load_average_before": self.load_before,
            "cores_used_by_other_processes": round(self.cores_of_others, 2),
        }


class Watch:
    """Samples the processes of a command: their memory, and the CPU time of all others on the machine."""

    def __init__(self, process: subprocess.Popen, trials: Path) -> None:
        self._driver, self._trials = psutil.Process(process.pid), trials
        self._core_s: dict[int, float] = {}
        self._began_s, self._busy_s = time.monotonic(), _busy_core_s()
        self.samples: list[Sample] = []

    def sample(self) -> None:
        driver_mib, trials_mib, rest_mib = 0.0, [], 0.0
        for process in [self._driver, *self._driver.children(recursive=True)]:
            try:
                with process.oneshot():
                    mib, title, times = process.memory_info().rss / MIB, process.cmdline()[:1], process.cpu_times()
            except psutil.Error:  # it has ended
                continue
            self._core_s[process.pid] = times.user + times.system
            if process.pid == self._driver.pid:
                driver_mib = mib
            elif title and title[0].startswith(TRIAL_TITLES):
                trials_mib.append(mib)
            else:
                rest_mib += mib
        num_ended = len(list(self._trials.glob("*.json")))
        self.samples.append(Sample(num_ended, driver_mib, sorted(trials_mib), rest_mib))

    def cores_of_others(self) -> float:
        """Cores that all other processes of the machine have used, on average."""
        passed_s = time.monotonic() - self._began_s
        return max(_busy_core_s() - self._busy_s - sum(self._core_s.values()), 0.0) / passed_s


def _busy_core_s() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def run_sweep(store: Path, runs: Path, name: str, options: str) -> Sweep:
    """Run `scale-ray sweep` on two CPUs and watch it each second."""
    arguments = ["sweep", *shlex.split(options), "--cpus", str(SLOTS), "--run", name]
    trials = runs / name / "trials"
    print(f"{name}: {shlex.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "scale_ray", *arguments, "--store", str(store), "--runs", str(runs)]
    load, began_s = os.getloadavg()[0], time.monotonic()
    runs.mkdir(parents=True, exist_ok=True)
    log = runs / f"{name}.log"
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **NICENESS})
        watch = Watch(process, trials)
        while process.poll() is None:
            watch.sample()
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                continue
    wall_s = time.monotonic() - began_s
    if process.returncode:
        found = f"exit code {process.returncode}\n{log.read_text()[-2000:]}"
        raise RuntimeError(f"{name}: expected a sweep that ends well, found {found}")
    results = sorted(TrialResults(str(runs / name)).all(), key=lambda trial: trial.began_s)
    if failed := [trial for trial in results if trial.state not in (FINISHED, STOPPED)]:
        raise RuntimeError(f"{name}: expected no failed trials, found {len(failed)}: {failed[0].reason}")
    shown = f"scale-ray {shlex.join(arguments)} --store STORE"
    sweep = Sweep(shown, wall_s, round(load, 2), watch.cores_of_others(), results, runs / name, watch.samples)
    print(json.dumps(sweep.summary()), file=sys.stderr, flush=True)
    return sweep


def successors(trials: Sequence[TrialResult]) -> list[tuple[TrialResult, TrialResult]]:
    """Pairs of a trial and the next one of its slot, in the order in which the next ones began.

    A trial belongs to the slot that became free last before it began.
    """
    last: list[TrialResult] = []
    pairs = []
    for trial in sorted(trials, key=lambda trial: trial.began_s):
        free = [other for other in last if ended_s(other) <= trial.began_s]
        if free and len(last) == SLOTS:
            before = max(free, key=ended_s)
            pairs.append((before, trial))
            last.remove(before)
        last.append(trial)
        assert len(last) <= SLOTS, "more trials at a time than there are slots"
    return pairs


def ended_s(trial: TrialResult) -> float:
    return trial.began_s + trial.seconds


def overheads(trials: Sequence[TrialResult]) -> dict[str, Any]:
    """Seconds of a trial beyond its training: from the end of the one before it in its slot to its own end."""
    pairs = successors(trials)
    whole = [ended_s(trial) - ended_s(before) - trial.metrics["train_seconds"] for before, trial in pairs]
    between = [trial.began_s - ended_s(before) for before, trial in pairs]
    inside = [trial.seconds - trial.metrics["train_seconds"] for _, trial in pairs]
    return {
        "overhead_s": _quantiles(whole),
        "of_it_before_the_trial_began_s": _quantiles(between),
        "of_it_within_the_trial_s": _quantiles(inside),
        "train_seconds": _quantiles([trial.metrics["train_seconds"] for _, trial in pairs]),
        "overhead_median_of_first_25_s": round(statistics.median(whole[:25]), 3),
        "overhead_median_of_last_25_s": round(statistics.median(whole[-25:]), 3),
        "overhead_of_each_s": [round(value, 3) for value in whole],
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    middle, high, maximum = np.quantile(values, [0.5, 0.9, 1.0]).round(3).tolist()
    return {"median": middle, "quantile_90": high, "max": maximum}


def memory(samples: Sequence[Sample]) -> dict[str, Any]:
    """Resident memory at trials 10, 50 and 100, and how much it grew per trial from the tenth on (least squares)."""
    running = [sample for sample in samples if len(sample.trials_mib) == SLOTS]
    parts = {
        "driver_mib": lambda sample: sample.driver_mib,
        "trial_processes_mib": lambda sample: sum(sample.trials_mib),
        "rest_of_ray_mib": lambda sample: sample.rest_mib,
    }
    figures: dict[str, Any] = {"samples": len(running), "trial_processes": SLOTS}
    for name, part in parts.items():
        at = {}
        for number in (10, 50, 100):
            near = sorted(running, key=lambda sample: abs(sample.num_ended - number))[:NEAREST]
            at[f"trial {number}"] = round(statistics.mean(map(part, near)))
        late = [(sample.num_ended, part(sample)) for sample in running if sample.num_ended >= 10]
        slope = np.polyfit(*np.array(late).T, 1)[0] if len({number for number, _ in late}) > 1 else None
        growth = None if slope is None else round(float(slope), 3)
        figures[name] = {**at, "max": round(max(map(part, running))), "growth_per_trial": growth}
    return figures


def measure_overhead(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    make_planted_store(folder / "small-store", given.small_videos, given.noise)
    sweep = run_sweep(folder / "small-store", folder / "runs", "overhead", OVERHEAD)
    return {**sweep.summary(), **overheads(sweep.trials), "memory": memory(sweep.samples)}


def measure_stopping(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    make_planted_store(folder / "store", given.videos, given.noise)
    repetitions = []
    for seed in range(given.repeats):
        options = f"{STOPPING} {TRAINING} --trials {given.stopping_trials} --search-seed {seed}"
        sweeps = {
            how: run_sweep(folder / "store", folder / "runs", f"{how}-{seed}", f"{options} --early-stopping {how}")
            for how in ("none", "asha")
        }
        repetitions.append(stopping_figures(sweeps["none"], sweeps["asha"]))
    saved = {f"saved_{unit}": [round(r["saved"][unit], 3) for r in repetitions] for unit in ("trial_seconds", "epochs")}
    return {
        **{name: {"each": values, "mean": round(statistics.mean(values), 3)} for name, values in saved.items()},
        "best_objective": {how: [r[how]["best_objective"] for r in repetitions] for how in ("none", "asha")},
        "rank_of_the_choice_of_asha": [r["rank_of_the_choice_of_asha"] for r in repetitions],
        "repetitions": repetitions,
    }


def stopping_figures(full: Sweep, stopped: Sweep) -> dict[str, Any]:
    """The fractions of seconds and epochs that early stopping saved, and the rank of its choice in the full search."""
    spent = {
        how: {
            **sweep.summary(),
            "epochs": sum(trial.epochs for trial in sweep.trials),
            "stopped": sum(trial.state == STOPPED for trial in sweep.trials),
            "best_objective": round(ranked(sweep.trials)[0].value, 4),
            "best_setting": ranked(sweep.trials)[0].setting,
        }
        for how, sweep in (("none", full), ("asha", stopped))
    }
    order = [result.setting for result in ranked(full.trials)]
    values = sorted((round(trial.value, 4) for trial in full.trials), reverse=True)
    return {
        "saved": {unit: 1 - spent["asha"][unit] / spent["none"][unit] for unit in ("trial_seconds", "epochs")},
        "rank_of_the_choice_of_asha": 1 + order.index(spent["asha"]["best_setting"]),
        **spent,
        "objectives_of_all_settings": values,
    }


def measure_search(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    make_planted_store(folder / "store", given.videos, given.noise)
    sweeps: dict[str, list[Sweep]] = {"random": [], "optuna": []}
    for seed in range(given.repeats):
        for how, done in sweeps.items():
            options = (
                f"--search {how} {SEARCHED} {TRAINING} --trials {given.search_trials} --search-seed {seed} "
                "--early-stopping none"
            )
            done.append(run_sweep(folder / "store", folder / "runs", f"{how}-{seed}", options))
    objectives = {
        how: [[round(t.value, 4) for t in sorted(sweep.trials, key=ended_s)] for sweep in done]
        for how, done in sweeps.items()
    }
    best = {how: np.maximum.accumulate(np.array(values), 1) for how, values in objectives.items()}
    (RESULTS / "sweeps_search.png").write_bytes(search_picture(best))
    figures: dict[str, Any] = {}
    for how, done in sweeps.items():
        values = np.array(objectives[how])
        figures[how] = {
            "best_objective": best[how][:, -1].tolist(),
            "mean_best_objective": {
                f"after {number} trials": round(float(best[how][:, number - 1].mean()), 4)
                for number in (5, 10, 20, given.search_trials)
                if number <= given.search_trials
            },
            "mean_objective_of_the_first_10_trials": values[:, :10].mean(1).round(4).tolist(),
            "mean_objective_of_the_last_10_trials": values[:, -10:].mean(1).round(4).tolist(),
            "best_setting": [ranked(sweep.trials)[0].setting for sweep in done],
            "objectives_in_order_of_ends": objectives[how],
            "sweeps": [sweep.summary() for sweep in done],
        }
    return figures


def search_picture(best: dict[str, np.ndarray]) -> bytes:
    """The best objective so far by trial, (repetitions, trials) of each search, as a PNG picture."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for colour, (how, values) in zip(("tab:gray", "tab:blue"), best.items(), strict=True):
        numbers = np.arange(1, values.shape[1] + 1)
        for row in values:
            axes.step(numbers, row, where="post", color=colour, alpha=0.4, linewidth=1)
        label = f"{how}, mean of {len(values)} (thin: each)"
        axes.step(numbers, values.mean(0), where="post", color=colour, linewidth=2.5, label=label)
    axes.set_xlabel("trials that have ended")
    axes.set_ylabel("best objective so far (k-NN top-1 of the fold)")
    axes.set_title("Searches over five options on an invented store")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def measure_real(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    # A copy: what a command writes beside the features does not touch the given store.
    shutil.copytree(given.store, folder / "real-store", dirs_exist_ok=True)
    options = f"{REAL} --epochs {given.epochs} --batch {given.batch}"
    sweep = run_sweep(folder / "real-store", folder / "runs", "real", options)
    shutil.copyfile(sweep.folder / "heatmap.png", RESULTS / "sweeps_heatmap.png")
    settings = ranked(sweep.trials)
    summary = sweep.summary()
    return {
        **summary,
        "wall_over_ideal": round(summary["wall_s"] / (summary["trial_seconds"] / SLOTS), 3),
        **overheads(sweep.trials),
        "settings": [
            {
                **{name.rpartition(".")[2]: value for name, value in result.setting.items()},
                "objective": round(result.value, 4),
                "interval": [round(result.low, 4), round(result.high, 4)],
                "each_seed": {str(seed): round(value, 4) for seed, value in result.each.items()},
                "behind_the_best": round(result.behind, 4),
                "behind_interval": [round(result.behind_low, 4), round(result.behind_high, 4)],
                "cannot_be_told_from_the_best": result.is_tied,
            }
            for result in settings
        ],
        "worse_than_the_best": sum(not result.is_tied for result in settings),
        "videos_validated": sum(sum(b[1] for b in t.blocks) for t in {t.fold: t for t in sweep.trials}.values()),
    }


def save(part: str, given: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print a part's record; with --save also replace its section in the results."""
    unsaved = ("folder", "save", "part", "measure", "store")
    libraries = {name: importlib.metadata.version(name) for name in ("mlflow", "optuna", "scikit-learn")}
    record = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware() | libraries,
        "options": {name: value for name, value in vars(given).items() if name not in unsaved},
        "figures": figures,
    }
    print(json.dumps(record, indent=1))
    if given.save:
        path = RESULTS / "sweeps.json"
        sections = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**sections, part: record}, indent=1) + "\n")


def main() -> None:
    arguments = parser(__doc__)
    parts = arguments.add_subparsers(dest="part", required=True)

    def part(name: str, measure: Any, **sizes: Any) -> argparse.ArgumentParser:
        added = parts.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        added.set_defaults(measure=measure)
        for size, (default, text) in sizes.items():
            added.add_argument(f"--{size.replace('_', '-')}", type=type(default), default=default, help=text)
        return added

    planted = {
        "videos": (600, "videos of the invented store"),
        "noise": (0.3, "noise of its features, relative to the scenes"),
        "repeats": (3, "repetitions, each with its own --search-seed"),
    }
    small = {"small_videos": (64, "videos of the invented store"), "noise": planted["noise"]}
    part("overhead", measure_overhead, **small)
    part("stopping", measure_stopping, **planted, stopping_trials=(24, "settings of each search"))
    part("search", measure_search, **planted, search_trials=(30, "settings of each search"))
    real = part("real", measure_real, epochs=(20, "epochs of each trial"), batch=(16, "videos per batch"))
    real.add_argument("store", help="a feature store with labels and 32 clips per video")
    given = arguments.parse_args()
    RESULTS.mkdir(exist_ok=True)
    with folder_of(given) as folder:
        if (folder / given.part).exists():  # its sweeps would find their trials done
            arguments.error(f"--folder: expected a folder without {given.part}, found {folder / given.part}")
        save(given.part, given, given.measure(folder / given.part, given))


if __name__ == "__main__":
    main()
