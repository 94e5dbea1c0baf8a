"""One writer per store: each writer writes a claim, looks for the claims of others, and keeps its own claim fresh.

    leases/CLAIM.json    who writes: host, process, since when; rewritten every few seconds

Works the same on local disks and on object stores, whose exclusive creation is not available in every file system
library: each writer first writes its own claim and then lists the folder. If two start at the same time, at least the
later one sees both claims, so two writers never both find themselves alone.
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

# A writer rewrites its claim every HEARTBEAT_S and counts as dead after SILENCE_S without that.
SILENCE_S = 60.0
HEARTBEAT_S = 15.0
# How long a writer waits for another one that started at the same time to give up.
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Claim:
    """Who wants to write; `process_began_s` distinguishes a process from a later one with the same id."""

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
        """Whether this is a process of this host that no longer exists."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.process).create_time() - self.process_began_s) > 1
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class Lease:
    """The write lease of a store; call `check` before each write that must not collide with another writer's."""

    def __init__(self, folder: str, claim: Claim) -> None:
        self._folder, self._claim = folder, claim
        self._over = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name="lease", daemon=True)

    def check(self) -> None:
        """Check that this writer still holds the lease.

        Raises
        ------
        RunFailed
            If its claim was removed: another writer may be at work.
        """
        if not exists(_claim_path(self._folder, self._claim)):
            raise RunFailed(
                f"{self._folder}: expected to be the only writer, found the claim of {self._claim} removed by "
                "another writer, which considered this one dead; run the same command again"
            )

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            try:
                if exists(_claim_path(self._folder, self._claim)):  # a removed claim must stay removed
                    _write(self._folder, self._claim)
            except OSError:
                continue  # the storage may be unavailable for a moment; `check` notices if it was too long

    def __enter__(self) -> Lease:
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._heartbeat.join()
        _remove(self._folder, self._claim)


@contextmanager
def write_lease(store: str) -> Iterator[Lease]:
    """Hold the write lease of a store while the context lasts.

    Claims of dead processes of this host, and claims that were not rewritten for a minute, are removed.

    Raises
    ------
    UserError
        If another writer holds the lease: the message names it.
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
        # Of several that started at the same time, the one with the smallest token waits and the others give up. A
        # writer that already works keeps its claim, so that all others give up.
        if min(other.token for other in others) < claim.token or time.monotonic() > end_s:
            raise UserError(f"{folder}: expected no other writer of this store, found {others[0]}")
        time.sleep(_PATIENCE_S / 10)


def _others(folder: str, claim: Claim) -> list[Claim]:
    """Claims of other writers that are alive; claims of dead ones are removed."""
    infos = list_files(folder)
    # All times come from the clock of the storage, so that the clocks of the hosts need not agree.
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
        return None  # removed after it was listed


def _write(folder: str, claim: Claim) -> None:
    with atomic_write(_claim_path(folder, claim)) as file:
        file.write(json.dumps(asdict(claim)).encode())


def _remove(folder: str, claim: Claim) -> None:
    filesystem, path = filesystem_of(_claim_path(folder, claim))
    try:
        filesystem.delete_file(path)
    except FileNotFoundError:
        return


def _claim_path(folder: str, claim: Claim) -> str:
    return join(folder, f"{claim.token}.json")
