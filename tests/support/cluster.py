"""A cluster on this machine: a head without CPUs and some nodes, each with an object store of its own, on loopback."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster
from support.servers import free_port

_STORE_BYTES = 256 * 2**20
# What Ray reads when its processes start.
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A dead node is noticed after this times 5 instead of after half a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
}


class SimulatedCluster:
    """Nodes that can be killed and added while jobs run."""

    def __init__(self, num_nodes: int = 3, cpus: int = 2, **environment: str) -> None:
        self._cpus, self._count = cpus, 0
        port = free_port()
        self.jobs = f"http://127.0.0.1:{port}"
        # Jobs call `python`.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # With the files of its own: jobs would find another Ray of this machine through the common ones.
        self._folder = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")
        self._environment = {**_ENVIRONMENT, "PATH": path, "RAY_TMPDIR": self._folder, **environment}
        with self._set():
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": True,
                    "dashboard_port": port,
                    # By default always the same one, which another cluster may have.
                    "dashboard_agent_listen_port": free_port(),
                    "object_store_memory": _STORE_BYTES,
                },
            )
        self.address = self._cluster.address
        self.nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add()
        self._wait_for_jobs()

    def add(self, **arguments: Any) -> Any:
        """Start one more node."""
        self._count += 1
        # Nodes of one machine would delete the code of a job that others still use.
        own = {"runtime_env_dir_name": f"runtime_resources_{self._count}"}
        defaults = {"num_cpus": self._cpus, "object_store_memory": _STORE_BYTES}
        with self._set():
            node = self._cluster.add_node(**{**defaults, **own, **arguments})
        self.nodes.append(node)
        return node

    def kill(self, number: int = 0) -> None:
        """Kill a node with all its processes, as if its machine had lost its power."""
        node = self.nodes.pop(number)
        own = [psutil.Process(info.process.pid) for infos in node.all_processes.values() for info in infos]
        # Ray would leave the agents, which are processes of the raylet.
        for process in [*own, *(child for parent in own for child in parent.children(recursive=True))]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        with self._set():
            self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_for_jobs(self, within_s: float = 60) -> None:
        from ray.job_submission import JobSubmissionClient

        end_s = time.monotonic() + within_s
        with self._set():
            while True:
                try:
                    JobSubmissionClient(self.jobs).list_jobs()
                    return
                except Exception:
                    if time.monotonic() > end_s:
                        raise
                    time.sleep(0.5)

    @contextmanager
    def _set(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in self._environment.items():
                environment.setenv(name, value)
            yield
