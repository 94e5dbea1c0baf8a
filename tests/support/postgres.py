"""A PostgreSQL of Debian's package, on loopback, in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from typing import Any

import psycopg2
from support.servers import free_port

USER, PASSWORD = "scale", "sesame+open"


def program(name: str) -> str | None:
    """The path of one of PostgreSQL's programs; Debian keeps those of the server outside of PATH."""
    return shutil.which(name) or next(iter(sorted(glob(f"/usr/lib/postgresql/*/bin/{name}"))), None)


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database, for a user with a password."""
    folder = tempfile.mkdtemp(prefix="postgres-", dir="/tmp")
    port = free_port()
    # PostgreSQL refuses to run as root.
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("nobody")
        os.chown(folder, account.pw_uid, account.pw_gid)
        as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    password = os.path.join(folder, "password")
    with open(password, "w", encoding="ascii") as file:
        file.write(PASSWORD)
    os.chmod(password, 0o644)
    data = os.path.join(folder, "data")
    try:
        subprocess.run(
            [str(program("initdb")), "-D", data, "-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "-N"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            **as_user,
        )
        options = ["-c", "listen_addresses=127.0.0.1", "-p", str(port), "-c", f"unix_socket_directories={folder}"]
        server = subprocess.Popen(
            [str(program("postgres")), "-D", data, *options], stderr=subprocess.DEVNULL, cwd=folder, **as_user
        )
        try:
            uri = f"postgresql://{USER}:{PASSWORD.replace('+', '%2B')}@127.0.0.1:{port}/postgres"
            _wait_for(uri, server)
            # The driver is named: SQLAlchemy would take another one.
            yield uri.replace("postgresql:", "postgresql+psycopg2:")
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(uri: str, server: subprocess.Popen[bytes], within_s: float = 60) -> None:
    end_s = time.monotonic() + within_s
    while True:
        try:
            psycopg2.connect(uri).close()
            return
        except psycopg2.OperationalError:
            assert server.poll() is None, "PostgreSQL ended by itself"
            assert time.monotonic() < end_s, "PostgreSQL does not answer"
            time.sleep(0.2)
