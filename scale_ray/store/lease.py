"""One writer per store or per part of it: each writes a claim, looks for those of others, and keeps its own fresh.

    leases/CLAIM.json              who writes what: host, process, since when; rewritten every few seconds
    leases/exclusive/CLAIM.json    the writer of a part that looks at the whole store, or changes files of others, now

Works the same on local disks and on object stores, whose exclusive creation is not available in every file system
library: each writer first writes its own claim and then lists the folder. If two start at the same time, at least the
later one sees both claims, so two writers never both find themselves alone.

Writers of different parts of a corpus, cut into the same number of parts, work at the same time: each only adds files
of its own. For all else they wait for each other.
"""

from __future__ import annotations

import functools
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import psutil

from scale_ray.config import Part
from scale_ray.console import Console
from scale_ray.errors import RunFailed, UserError
from scale_ray.files.locations import atomic_write, check_within, exists, files_in, filesystem_of, join, read_bytes
from scale_ray.files.small_files import parsed_json

# A writer rewrites its claim every HEARTBEAT_S and counts as dead after SILENCE_S without that.
SILENCE_S = 60.0
HEARTBEAT_S = 15.0
# How long a writer waits for another one that started at the same time to give up.
_PATIENCE_S = 5.0
_CLAIM = {
    "token": str,
    "host": str,
    "process": int,
    "process_began_s": float | int,
    "since": str,
    "machine": str | None,
    "part": str | None,
}
_CONSOLE = Console()


@dataclass(frozen=True)
class Claim:
    """Who wants to write.

    `process_began_s` distinguishes a process from a later one with the same id: the seconds from the machine's start
    to the process's, which do not change if the clock is set. `machine` identifies the running machine, since hosts may
    share a name; it is empty if it cannot be known. `part` is the part of the corpus, empty for the whole store.
    """

    token: str
    host: str
    process: int
    process_began_s: float
    since: str
    machine: str = ""
    part: str = ""

    @classmethod
    def mine(cls, part: Part | None = None) -> Claim:
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            process=os.getpid(),
            process_began_s=_began_s(os.getpid()),
            since=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            machine=_machine(),
            part="" if part is None else str(part),
        )

    def conflicts_with(self, other: Claim) -> bool:
        """Whether both may not write at the same time: all may not but different parts of as many."""
        mine, others = Part.parse(self.part), Part.parse(other.part)
        return mine is None or others is None or mine.count != others.count or mine.number == others.number

    def is_from_here(self) -> bool:
        """Whether this is a process that can be looked up here: one of this host since its last start."""
        return self.host == socket.gethostname() and self.machine == _machine() != ""

    def is_alive(self) -> bool:
        """Whether a process of this host still exists."""
        try:
            return abs(_began_s(self.process) - self.process_began_s) <= 1
        except psutil.Error:
            return False

    def __str__(self) -> str:
        part = Part.parse(self.part)
        what = "" if part is None else f", of part {part}"
        return f"process {self.process} on {self.host}, since {self.since}{what}"


def _began_s(process: int) -> float:
    """Seconds from the machine's start to a process's; a process that has ended, if only its entry is left, is none."""
    found = psutil.Process(process)
    if found.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(process)
    return found.create_time() - psutil.boot_time()


@functools.cache
def _machine() -> str:
    """The running machine, and on it the space of process ids: containers of one host may share its name."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class Lease:
    """The write lease of a store or a part; call `check` before each write that must not collide with another's."""

    def __init__(self, folder: str, claim: Claim, console: Console = _CONSOLE) -> None:
        self._folder, self._claim, self._console = folder, claim, console
        self._turn: Lease | None = None
        self._over = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name="lease", daemon=True)

    def check(self) -> None:
        """Check that this writer still holds the lease.

        Raises
        ------
        RunFailed
            If its claim was removed: another writer may be at work.
        """
        if not exists(_claim_path(self._folder, self._claim.token)):
            raise RunFailed(
                f"{self._folder}: expected to be the only writer, found the claim of {self._claim} removed by "
                "another writer, which considered this one dead; run the same command again"
            )
        if self._turn is not None:
            self._turn.check()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep the writers of all other parts from doing the same while the context lasts; waits for its turn.

        To be held while files are read, replaced or deleted that may be those of others. The writer of a whole store
        has no others.
        """
        if not self._claim.part:
            yield
            return
        folder = join(self._folder, "exclusive")
        check_within(folder, self._folder)
        with Lease(folder, _turn(folder, self._console), self._console) as turn:
            self._turn = turn
            try:
                yield
                turn.check()
            finally:
                self._turn = None

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            try:
                if exists(_claim_path(self._folder, self._claim.token)):  # a removed claim must stay removed
                    _write(self._folder, self._claim)
            except (OSError, UserError, RunFailed):
                continue  # the storage may be unavailable for a moment; `check` notices if it was too long

    def __enter__(self) -> Lease:
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._heartbeat.join()
        with suppress(OSError):  # the storage is gone or read-only; the claim of an ended process counts for nothing
            _remove(self._folder, self._claim.token)


@contextmanager
def write_lease(store: str, console: Console = _CONSOLE, part: Part | None = None) -> Iterator[Lease]:
    """Hold the write lease of a store, or of one part of the corpus, while the context lasts.

    Of the claims by processes of this host, those of dead ones are removed. Of all others, those that were not
    rewritten for a minute are removed, also if they cannot be read.

    Raises
    ------
    UserError
        If another writer holds the lease, of the same part, of the whole store or of another number of parts: the
        message names it.
    """
    folder = join(store, "leases")
    check_within(folder, store)
    claim = Claim.mine(part)
    if (other := _claimed(folder, claim, console)) is not None:
        what = "store" if part is None else "part of the store"
        raise UserError(f"{folder}: expected no other writer of this {what}, found {other}")
    with Lease(folder, claim, console) as lease:
        yield lease


def _turn(folder: str, console: Console) -> Claim:
    """The claim of the only one that works exclusively, once it is this writer's turn."""
    waits_since_s = time.monotonic()
    has_said = False
    while (other := _claimed(folder, claim := Claim.mine(), console)) is not None:
        if not has_said and time.monotonic() - waits_since_s > _PATIENCE_S:
            console.say(f"waiting for another part that reads or updates the whole store: {other}")
            has_said = True
        time.sleep(random.uniform(0.1, 0.2) * _PATIENCE_S)
    return claim


def _claimed(folder: str, claim: Claim, console: Console) -> Claim | str | None:
    """Write a claim; returns None if it holds, otherwise the one that it gave way to."""
    _write(folder, claim)
    try:
        other = _wait_for_others(folder, claim, console)
    except BaseException:
        _remove(folder, claim.token)
        raise
    if other is not None:
        _remove(folder, claim.token)
    return other


def _wait_for_others(folder: str, claim: Claim, console: Console) -> Claim | str | None:
    """One of the others that keep this claim from holding, after some patience; None if there is none."""
    end_s = time.monotonic() + _PATIENCE_S
    while others := _others(folder, claim, console):
        # Of several that started at the same time, the one with the smallest token waits and the others give up. A
        # writer that already works keeps its claim, so that all others give up.
        if min(others) < claim.token or time.monotonic() > end_s:
            return next(iter(others.values()))
        time.sleep(_PATIENCE_S / 10)
    return None


def _others(folder: str, claim: Claim, console: Console) -> dict[str, Claim | str]:
    """Conflicting claims of writers that are alive, by token; a text for an unreadable one. Dead ones are removed."""
    infos = files_in(folder)
    # All times come from the clock of the storage, so that the clocks of the hosts need not agree.
    now = next((info.mtime for info in infos if info.base_name == f"{claim.token}.json"), None)
    others: dict[str, Claim | str] = {}
    for info in infos:
        token = info.base_name.removesuffix(".json")
        if token in (info.base_name, claim.token):
            continue
        try:
            other = _read(folder, token)
        except FileNotFoundError:
            continue  # removed after it was listed
        silent = now is not None and (now - info.mtime).total_seconds() > SILENCE_S
        if isinstance(other, Claim) and other.is_from_here():
            silent = not other.is_alive()
        if not silent:
            if not isinstance(other, Claim) or claim.conflicts_with(other):
                others[token] = other
            continue
        _remove(folder, token)
        if not isinstance(other, Claim):
            console.say(f"{folder}: removed {other}")
    return others


def _read(folder: str, token: str) -> Claim | str:
    """A claim; the words for it if it cannot be read, since its writer died while it was written or is unknown."""
    path = _claim_path(folder, token)
    content = read_bytes(path)
    try:
        known = parsed_json(content, path, "a claim", _CLAIM)
    except UserError:
        return f"a claim that cannot be read, {token}.json (it counts for {SILENCE_S:.0f} s)"
    return Claim(**{name: known[name] for name in _CLAIM if known.get(name) is not None})


def _write(folder: str, claim: Claim) -> None:
    with atomic_write(_claim_path(folder, claim.token)) as file:
        file.write(json.dumps(asdict(claim)).encode())


def _remove(folder: str, token: str) -> None:
    # By the name of the file, not by what a claim says about itself.
    filesystem, path = filesystem_of(_claim_path(folder, token))
    try:
        filesystem.delete_file(path)
    except FileNotFoundError:
        return


def _claim_path(folder: str, token: str) -> str:
    return join(folder, f"{token}.json")
