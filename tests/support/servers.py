"""Servers that tests start on the loopback interface and stop again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def forwarding(port: int, to_port: int) -> Iterator[None]:
    """Pass connections on to another port of this machine; at the end they break, and new ones are refused."""
    opened: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here = listener.accept()[0]
                there = socket.create_connection(("127.0.0.1", to_port))
                opened.extend((here, there))
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for end in opened:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


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
