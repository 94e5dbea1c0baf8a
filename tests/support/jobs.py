"""Commands that run as jobs of a simulated cluster, while its nodes are killed and added."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet as pq
from ray.job_submission import JobSubmissionClient
from support.cluster import SimulatedCluster
from support.command import PROJECT, Ended

# Batches that never span two videos give the same features however the videos are cut into blocks.
EXTRACT = ("--backbone", "slow_net:net", "--shard-videos", 4, "--clips", 8, "--batch-clips", 4)
SMALL = ("--prediction-hidden", 32, "--target-hidden", 32, "--width", 32, "--layers", 1, "--batch", 8, "--dropout", 0)
PRETRAIN = (*SMALL, "--set-size", 4, "--epochs", 160, "--checkpoint-epochs", 5, "--monitor-epochs", 0)
# Holds `slow_net`.
MODULES = Path(__file__).parent

_JOB = re.compile(r"^job (\S+) on ", re.MULTILINE)


@dataclass
class Running:
    """A command that follows its job; what it printed so far is in two files."""

    process: subprocess.Popen[str]
    out: Path
    err: Path

    def wait(self, timeout_s: float = 500) -> Ended:
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the job hangs:\n{self.err.read_text()}") from None
        return Ended(code, self.out.read_text(), self.err.read_text())

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 300) -> None:
        """Wait for something that happens while the job runs."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"the job ended too early:\n{self.err.read_text()}"
            assert time.monotonic() < end_s, f"the job does not come so far:\n{self.err.read_text()}"
            time.sleep(0.1)

    def assert_running(self) -> None:
        assert self.process.poll() is None, "the job ended before the node was killed"

    def job_id(self) -> str:
        self.wait_until(lambda: _JOB.search(self.err.read_text()))
        return _JOB.search(self.err.read_text())[1]  # type: ignore[index]

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)


class Jobs:
    """Sends commands to a cluster, and knows their logs."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self._count = 0

    def start(self, folder: Path, *arguments: object, module_folder: Path | None = None) -> Running:
        """Start `scale-ray ARGUMENTS --address CLUSTER`."""
        self._count += 1
        out, err = (folder / f"{self._count}.{name}" for name in ("out", "err"))
        python_path = os.pathsep.join(map(str, filter(None, [PROJECT, module_folder])))
        with out.open("w") as out_file, err.open("w") as err_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "scale_ray", *map(str, arguments), "--address", self.cluster.jobs],
                stdout=out_file,
                stderr=err_file,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": python_path},
                # A test run in the background would ignore Ctrl-C, and so would its commands.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                text=True,
            )
        return Running(process, out, err)

    def run(self, folder: Path, *arguments: object, module_folder: Path | None = None) -> Ended:
        """Run a command to its end; it must succeed."""
        ended = self.start(folder, *arguments, module_folder=module_folder).wait()
        assert ended.code == 0, ended.err
        return ended

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.cluster.jobs)

    def logs(self) -> dict[str, str]:
        """The log of every job so far, by its id."""
        client = self.client()
        return {
            job.submission_id: client.get_job_logs(job.submission_id) for job in client.list_jobs() if job.submission_id
        }


def files_in(folder: Path, pattern: str = "*.parquet") -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.exists() else []


def rows_of(folder: Path) -> list[tuple]:
    """All rows of the Parquet files of a folder, in the order of their keys."""
    table = pyarrow.dataset.dataset(files_in(folder)).to_table()
    in_order = table.sort_by([("video_id", "ascending"), ("mode", "ascending")])
    return [tuple(row.values()) for row in in_order.to_pylist()]


def history_of(runs: Path, name: str) -> list[dict]:
    """The metrics of the epochs of a run, without those of its speed."""
    rows = pq.read_table(runs / name / "history.parquet").to_pylist()
    return [{k: v for k, v in row.items() if not k.endswith("_per_s") and k != "memory_mib"} for row in rows]
