"""Servers that tests start on the loopback interface and stop again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(program: str, *arguments: str, port: int, within_s: float) -> Iterator[None]:
    """Run a program of this environment; enter when it answers on its port, stop it and its children at the end."""
    here = Path(sys.executable).parent
    process = subprocess.Popen(
        [str(here / program), *arguments],
        env={**os.environ, "PATH": f"{here}:{os.environ['PATH']}"},  # it starts other programs by name
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end_s = time.monotonic() + within_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, f"{program} ended by itself"
                assert time.monotonic() < end_s, f"{program} did not answer on its port"
                time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
