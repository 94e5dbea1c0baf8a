"""A Ray that the commands of a whole file share: each would otherwise start its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.servers import free_port, serving


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[str]:
    """The address of a Ray with two CPUs, and RAY_ADDRESS set to it."""
    port = free_port()
    arguments = ("start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={port}")
    with (
        serving("ray", *arguments, "--include-dashboard=false", "--disable-usage-stats", port=port, within_s=60),
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
