"""One writer a store: a claim that is written first, looked around from, and kept fresh.

    leases/CLAIM.json    who writes: host, process, since when; rewritten every few seconds

Works the same on a local disk and on an object store, which has no exclusive creation that every file
system library offers: each writer first writes a claim of its own and then lists the folder. Of two
that begin at once at least the later one sees both, so that never two see themselves alone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil

from scale_ray.errors import RunFailed, UserError
from scale_ray.locations import atomic_write, exists, filesystem_of, join, list_files, read_bytes

# Silence after which a writer counts as dead, and how often a living one writes.
SILENCE_S = 60.0
HEARTBEAT_S = 15.0
# How long one of two that began at once waits for the other to step back.
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Claim:
    """Who wants to write: `process_began_s` tells a process from a later one of the same number."""

    token: str
    host: str
    process: int
    process_began_s: float
    since: str

    @classmethod
    def mine(cls) -> Claim:
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            process=os.getpid(),
            process_began_s=psutil.Process().create_time(),
            since=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        )

    def died_here(self) -> bool:
        """Whether this is a process of this host that is no more."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.process).create_time() - self.process_began_s) > 1
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class Lease:
    """A held lease; `check` before each write that another writer's must not meet."""

    def __init__(self, folder: str, claim: Claim) -> None:
        self._folder, self._claim = folder, claim
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    def check(self) -> None:
        """Make sure that nobody took this writer for dead meanwhile.

        Raises
        ------
        RunFailed
            Where the claim is gone: another writer may be at work.
        """
        if not exists(_place(self._folder, self._claim)):
            raise RunFailed(
                f"{self._folder}: expected to hold the store alone, found the claim of {self._claim} removed by "
                "another writer, which took it for dead; run the same command again"
            )

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            try:
                if exists(_place(self._folder, self._claim)):  # once taken away it stays away
                    _write(self._folder, self._claim)
            except OSError:
                continue  # a storage that is away for a moment; `check` tells if it was too long

    def __enter__(self) -> Lease:
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._heart.join()
        _remove(self._folder, self._claim)


@contextmanager
def write_lease(store: str) -> Iterator[Lease]:
    """The lease of a store, for as long as the context lasts.

    A claim of a dead process of this host, or one that was silent for a minute, is removed.

    Raises
    ------
    UserError
        Where another writer holds the store: says who.
    """
    folder = join(store, "leases")
    claim = Claim.mine()
    _write(folder, claim)
    try:
        _wait_for_others(folder, claim)
    except BaseException:
        _remove(folder, claim)
        raise
    with Lease(folder, claim) as lease:
        yield lease


def _wait_for_others(folder: str, claim: Claim) -> None:
    end_s = time.monotonic() + _PATIENCE_S
    while others := _others(folder, claim):
        # Of several that began at once the one of the least token stays and waits; a writer that is
        # already at work stays in any case, and then all others give up.
        if min(other.token for other in others) < claim.token or time.monotonic() > end_s:
            raise UserError(f"{folder}: expected to write to this store alone, found {others[0]} writing to it")
        time.sleep(_PATIENCE_S / 10)


def _others(folder: str, claim: Claim) -> list[Claim]:
    """Claims of other writers that are alive."""
    infos = list_files(folder)
    # The storage's own clock stamps all of them, so that no two hosts' clocks need agree.
    now = next((info.mtime for info in infos if info.base_name == f"{claim.token}.json"), None)
    others = []
    for info in infos:
        if not info.base_name.endswith(".json") or info.base_name == f"{claim.token}.json":
            continue
        other = _read(folder, info.base_name)
        if other is None:
            continue
        silent = now is not None and (now - info.mtime).total_seconds() > SILENCE_S
        if silent or other.died_here():
            _remove(folder, other)
        else:
            others.append(other)
    return others


def _read(folder: str, name: str) -> Claim | None:
    try:
        return Claim(**json.loads(read_bytes(join(folder, name))))
    except FileNotFoundError:
        return None  # gone since it was listed


def _write(folder: str, claim: Claim) -> None:
    with atomic_write(_place(folder, claim)) as file:
        file.write(json.dumps(asdict(claim)).encode())


def _remove(folder: str, claim: Claim) -> None:
    filesystem, path = filesystem_of(_place(folder, claim))
    try:
        filesystem.delete_file(path)
    except FileNotFoundError:
        return


def _place(folder: str, claim: Claim) -> str:
    return join(folder, f"{claim.token}.json")
