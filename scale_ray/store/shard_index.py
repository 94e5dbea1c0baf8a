"""What the shards of a store hold: the ids and geometries of their videos, read once per shard.

Planning, the table of videos, the ledger and the summary of a run all need them. Opening a file takes longer than
reading the few columns in it, so a store of thousands of shards is read once and not once for each of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from pyarrow import fs

# Shards that are read at once: most of the time is waiting, for the disk or for a server.
_AT_ONCE = 16

# The time of the last change and the size of a file; the time is None if the server does not tell it.
_Version = tuple[int | None, int]


class ShardIndex:
    """Tables of some columns of shards, by path; a shard is read again only if its file has changed."""

    def __init__(self, read: Callable[[str], pa.Table]) -> None:
        self._read = read
        self._known: dict[str, tuple[_Version, pa.Table]] = {}

    def tables(self, infos: Sequence[fs.FileInfo]) -> dict[str, pa.Table]:
        """The table of each shard, in the order of the files."""
        stale = [info for info in infos if not self._is_known(info)]
        if len(stale) == 1:
            self._known[stale[0].path] = _version(stale[0]), self._read(stale[0].path)
        elif stale:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                tables = threads.map(self._read, [info.path for info in stale])
                for info, table in zip(stale, tables, strict=True):
                    self._known[info.path] = _version(info), table
        return {info.path: self._known[info.path][1] for info in infos}

    def forget(self, path: str) -> None:
        """Read a shard again when it is needed next."""
        self._known.pop(path, None)

    def _is_known(self, info: fs.FileInfo) -> bool:
        known = self._known.get(info.path)
        return known is not None and info.mtime_ns is not None and known[0] == _version(info)


def _version(info: fs.FileInfo) -> _Version:
    return info.mtime_ns, info.size
