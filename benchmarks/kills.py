"""Nodes of a cluster of three are killed at random moments of every stage, and others are added; nothing may change.

Undisturbed jobs give the expected rows, losses and trials. Then the stages run one after the other, over and over, as
jobs over HTTP, while nodes are killed (kill -9 of all their processes) and replaced, until there were enough kills. A
job that ends with exit code 1, in one line, is submitted again, as a user would. After each: extracted rows and vectors
are equal to the byte, losses to 1e-5, no finished trial was run twice, and no log holds a traceback.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(
    {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import folder_of, parser, report
from support.cluster import SimulatedCluster
from support.jobs import EXTRACT, MODULES, PRETRAIN, SMALL, Jobs, files_in, history_of, rows_of

from scale_ray.corpus.sample_videos import make_samples

STAGES = ("extract", "pretrain", "embed", "sweep", "pipeline")
_ATTEMPTS = 4
_HANGS_S = 600


class Killer:
    """Kills random nodes at random moments, and adds one after each; Ray starts nodes in the main thread only."""

    def __init__(self, cluster: SimulatedCluster, moments: random.Random, mean_s: float) -> None:
        self._cluster, self._moments, self._mean_s = cluster, moments, mean_s
        self.kills: list[float] = []
        self._began_s = self._last_s = time.monotonic()
        self._pause_s = self._next_pause_s()

    def work(self) -> None:
        """Kill a node if its moment has come."""
        if time.monotonic() - self._last_s < self._pause_s:
            return
        self._cluster.kill(self._moments.randrange(len(self._cluster.nodes)))
        self.kills.append(round(time.monotonic() - self._began_s, 1))
        self._cluster.add()
        self._last_s, self._pause_s = time.monotonic(), self._next_pause_s()

    def _next_pause_s(self) -> float:
        # The first seconds are those of the submission.
        return 5 + self._moments.expovariate(1 / self._mean_s)


def arguments_of(stage: str, videos: Path, place: Path, expected: Path) -> tuple[object, ...]:
    """The command of a stage; `expected` is the folder of the undisturbed jobs."""
    pretrain = (*PRETRAIN, "--epochs", 60)
    trained = ("--checkpoint", expected / "run", "--runs", expected)
    module = ("--trust-custom-backbone", "--send-modules", "slow_net")
    space = ("--set-size", 4, "--mask-ratio", "0.25,0.5", "--seeds", 3, "--epochs", 60)
    probes = ("--probe-epochs", 1, "--probe-min-steps", 5, "--probes", "knn")
    options: dict[str, tuple[object, ...]] = {
        "extract": (videos, "--store", place / "store", *EXTRACT),
        "pretrain": ("--store", expected / "store", "--runs", place, "--run", "run", *pretrain),
        "embed": (
            videos,
            *trained,
            "--out",
            place,
            "--shard-videos",
            4,
            "--batch-clips",
            4,
            "--mode",
            "train",
            *module,
        ),
        "sweep": ("--store", expected / "store", "--runs", place, "--run", "sweep", *SMALL, *space),
        "pipeline": (videos, "--store", place / "store", "--runs", place, "--run", "run", *EXTRACT, *pretrain, *probes),
    }
    return (
        (stage, *options[stage], "--max-restarts", 20)
        if stage in ("pretrain", "sweep", "pipeline")
        else (stage, *options[stage])
    )


def compare(stage: str, place: Path, expected: Path) -> None:
    """Check that a disturbed stage has the result of the undisturbed one."""
    if stage in ("extract", "pipeline"):
        assert rows_of(place / "store" / "features") == rows_of(expected / "store" / "features"), "other rows"
    if stage in ("pretrain", "pipeline"):
        losses, others = ([row["loss"] for row in history_of(runs, "run")] for runs in (place, expected))
        assert len(losses) == len(others), "another number of epochs"
        assert max(abs(a - b) for a, b in zip(losses, others, strict=True)) < 1e-5, "other losses"
    if stage == "embed":
        assert rows_of(place / "vectors") == rows_of(expected / "embed" / "vectors"), "other vectors"
    if stage == "sweep":
        trials = [json.loads(path.read_text()) for path in files_in(place / "sweep" / "trials", "*.json")]
        assert len(trials) == 6, "another number of trials"
        assert all(trial["state"] == "finished" for trial in trials), "failed trials"


def disturbed(
    stage: str, jobs: Jobs, videos: Path, folder: Path, expected: Path, moments: random.Random, mean_s: float
) -> dict[str, Any]:
    """Run one stage to its end while nodes are killed."""
    place = folder / f"{stage}-{time.time_ns()}"
    place.mkdir()
    killer = Killer(jobs.cluster, moments, mean_s)
    finished: dict[Path, bytes] = {}
    commands, errors = 0, []
    while True:
        commands += 1
        running = jobs.start(folder, *arguments_of(stage, videos, place, expected), module_folder=MODULES)
        end_s = time.monotonic() + _HANGS_S
        while running.process.poll() is None and time.monotonic() < end_s:
            killer.work()
            time.sleep(0.1)
        ended = running.wait(0.1)
        assert "Traceback" not in ended.err, ended.err
        assert all(path.read_bytes() == content for path, content in finished.items()), "a trial was run twice"
        finished |= {path: path.read_bytes() for path in files_in(place / "sweep" / "trials", "*.json")}
        if ended.code == 0:
            break
        errors.append(ended.err.splitlines()[-1][:200])
        assert commands < _ATTEMPTS, errors
    compare(stage, place, expected)
    return {"stage": stage, "killed_after_s": killer.kills, "commands": commands, "errors": errors}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=50, help="minimum number of kills in all")
    arguments.add_argument("--stages", default=",".join(STAGES), help="stages, separated by commas")
    arguments.add_argument("--mean-s", type=float, default=15.0, help="mean seconds between two kills, besides 5")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the moments and of the nodes")
    given = arguments.parse_args()
    moments = random.Random(given.seed)
    runs: list[dict[str, Any]] = []
    with folder_of(given) as folder:
        videos, expected = folder / "videos", folder / "expected"
        list(make_samples(videos, 10))
        expected.mkdir()
        cluster = SimulatedCluster(3)
        try:
            jobs = Jobs(cluster)
            for stage in ("extract", "pretrain"):
                jobs.run(expected, *arguments_of(stage, videos, expected, expected), module_folder=MODULES)
            (expected / "embed").mkdir()
            jobs.run(expected, *arguments_of("embed", videos, expected / "embed", expected), module_folder=MODULES)
            while sum(len(run["killed_after_s"]) for run in runs) < given.kills:
                stage = given.stages.split(",")[len(runs) % len(given.stages.split(","))]
                runs.append(disturbed(stage, jobs, videos, folder, expected, moments, given.mean_s))
                print(runs[-1], file=sys.stderr, flush=True)
            assert not any("Traceback" in text for text in jobs.logs().values())
        finally:
            cluster.close()
    kills = sum(len(run["killed_after_s"]) for run in runs)
    report("kills", given, {"kills": kills, "again": sum(run["commands"] - 1 for run in runs), "runs": runs})


if __name__ == "__main__":
    main()
