"""How the workers of a training find each other: on one machine through a file, without an open port."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend


class Rendezvous(TorchConfig):  # type: ignore[misc]  # Ray is not typed for mypy here
    """Ray's configuration of torch, except that workers on one machine use nothing that others can connect to.

    torch's own rendezvous is a server without a password that listens on every network. Workers on several machines
    need it.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    _folder: str | None = None

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len(set(worker_group.execute(_node_id))) > 1:
            super().on_start(worker_group, backend_config)
            return
        # A new one for each start, as a file serves one process group. Collectives may use it until the end.
        self._folder = worker_group.execute_single(0, new_folder)
        worker_group.execute(use_loopback)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=f"file://{self._folder}/rendezvous",
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_shutdown(worker_group, backend_config)
        if self._folder is not None:
            worker_group.execute_single_async(0, shutil.rmtree, self._folder, ignore_errors=True)


def new_folder() -> str:
    """A folder for the file through which workers on one machine find each other."""
    # Of a local Ray, in the folder that is removed with it, whatever happens to the workers.
    return tempfile.mkdtemp(prefix="scale-ray-", dir=os.environ.get("RAY_TMPDIR"))


def _node_id() -> str:
    return ray.get_runtime_context().get_node_id()


def use_loopback() -> None:
    """Let gloo and NCCL connect over the loopback interface."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
