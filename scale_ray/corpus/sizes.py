"""The sizes of the files that a manifest names, in a time that does not grow with its length.

Local files are measured. The sizes of remote files are given by the manifest, listed by folder or asked for one by one,
all within a limit of time; a size that is not found then is known when the file is opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from time import monotonic
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from scale_ray.errors import first_line
from scale_ray.files.locations import (
    filesystem_of,
    info_of,
    local_path,
    server_of,
    showable,
    with_options_of,
)
from scale_ray.files.requests import ask

# How long servers have for their first answer, how long all sizes may take, and how many servers are asked.
_PATIENCE_S = 10.0
_LIMIT_S = 20.0
_MOST_SERVERS = 64
# A request returns one size, or a thousand files of a folder: folders are listed if they have so many rows on average,
# and none so many that its listing, one request after the other, would take more than some seconds.
_ROWS_PER_FOLDER = 50
_MOST_IN_A_FOLDER = 100_000
# So many files of a server are asked for one by one, if its folders are not listed.
_MOST_ASKED = 2000
_ROWS_AT_ONCE = 4096
_WITHOUT_LISTING = ("http", "https")
# Errors of servers that did answer.
_ANSWERED = re.compile(r"ACCESS_DENIED|PERMISSION_DENIED|UNAUTHENTICATED|Forbidden|\b40[13]\b")
_FEW = 16
_UNKNOWN, _NO_FILE = -1, -2
_URI = r"^[A-Za-z][A-Za-z0-9+.-]*://"
_LOCAL = r"^(?i:file)://(/|$)"
_HOST = r"^(?P<host>[A-Za-z][A-Za-z0-9+.-]*://[^/?]*)"


@dataclass(frozen=True)
class _Answer:
    """What one server tells: a size per file, `_UNKNOWN` or `_NO_FILE`; why it told none; whether it was reached."""

    sizes: np.ndarray
    reason: str = ""
    is_reached: bool = True


def file_sizes(
    paths: pa.ChunkedArray, given: pa.ChunkedArray | None, source: str
) -> tuple[pa.Array, list[str], dict[str, str]]:
    """The file sizes in bytes, int64: null for a file that is missing and for a size that is not known yet.

    Sizes that the manifest `source` gives for remote files are believed. Returns the sizes, notes for the user, and
    why a server could not be reached, by server.
    """
    sizes = np.full(len(paths), _UNKNOWN, np.int64)
    is_remote = np.asarray(pc.and_not(pc.match_substring_regex(paths, _URI), pc.match_substring_regex(paths, _LOCAL)))
    if given is not None:
        sizes[is_remote] = given.cast(pa.int64(), safe=False).fill_null(_UNKNOWN).to_numpy()[is_remote]
    _measure_local(paths, np.flatnonzero(~is_remote), sizes)
    servers = _rows_by_server(paths, np.flatnonzero(is_remote))
    answers = _ask_servers(servers, paths, sizes, source)
    notes: list[str] = []
    for server, answer in answers.items():
        rows = servers[server]
        lacking = rows[sizes[rows] == _UNKNOWN]
        sizes[lacking] = answer.sizes
        if answer.reason:
            known = f"sizes of files at {showable(server)} are not known ({len(lacking)})"
            files = "1 file is" if len(rows) == 1 else f"{len(rows)} files are"
            lost = f"{files} at {showable(server)}, which cannot be reached"
            notes.append(f"{known if answer.is_reached else lost}: {answer.reason}")
    said = [servers[server] for server, answer in answers.items() if answer.reason]
    later = int((sizes == _UNKNOWN).sum()) - sum(int((sizes[rows] == _UNKNOWN).sum()) for rows in said)
    if later:
        notes.append(f"{later} sizes are not known before the files are opened")
    unreachable = {server: answer.reason for server, answer in answers.items() if not answer.is_reached}
    return pa.array(sizes, mask=sizes < 0), notes, unreachable


def _measure_local(paths: pa.ChunkedArray, rows: np.ndarray, sizes: np.ndarray) -> None:
    """Fill in the sizes of local files; several at once, since a file system in a network takes a while for each."""

    def measure(some: np.ndarray) -> list[int]:
        return [_local_size(str(local_path(path))) for path in paths.take(pa.array(some)).to_pylist()]

    blocks = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    for some, answer in zip(blocks, ask(measure, blocks, within_s=_LIMIT_S), strict=True):
        if answer.done():
            sizes[some] = answer.result()


def _local_size(path: str) -> int:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return _NO_FILE
    return status.st_size if stat.S_ISREG(status.st_mode) else _NO_FILE


def _rows_by_server(paths: pa.ChunkedArray, rows: np.ndarray) -> dict[str, np.ndarray]:
    hosts = pc.extract_regex(paths.take(pa.array(rows)), _HOST).combine_chunks().field("host").dictionary_encode()
    servers: dict[str, list[np.ndarray]] = {}
    for number, host in enumerate(hosts.dictionary.to_pylist()):
        servers.setdefault(server_of(host), []).append(rows[hosts.indices.to_numpy() == number])
    return {server: np.sort(np.concatenate(parts)) for server, parts in servers.items()}


def _ask_servers(
    servers: Mapping[str, np.ndarray], paths: pa.ChunkedArray, sizes: np.ndarray, source: str
) -> dict[str, _Answer]:
    """The answers of the servers with most rows, of all at once, so that one that hangs holds up no other."""

    def ask_server(server: str) -> _Answer:
        rows = servers[server]
        lacking = rows[sizes[rows] == _UNKNOWN]
        end_s = monotonic() + _LIMIT_S
        probed = _spread(len(lacking), _FEW) if len(lacking) else np.zeros(1, np.int64)
        answers = _ask_each(paths.take(pa.array((lacking if len(lacking) else rows)[probed])), source, _PATIENCE_S)
        found = np.full(len(lacking), _UNKNOWN, np.int64)
        reason, is_reached = _reason(answers)
        if reason or not len(lacking):
            return _Answer(found, reason, is_reached)
        found[probed] = _values(answers)
        others = np.flatnonzero(found == _UNKNOWN)
        found[others] = _found_sizes(paths.take(pa.array(lacking[others])), source, end_s)
        return _Answer(found)

    chosen = sorted(servers, key=lambda server: -len(servers[server]))[:_MOST_SERVERS]
    answers = ask(ask_server, chosen, within_s=_PATIENCE_S + _LIMIT_S, at_once=_MOST_SERVERS)
    return {server: answer.result() for server, answer in zip(chosen, answers, strict=True) if answer.done()}


def _spread(number: int, most: int) -> np.ndarray:
    """At most so many of the first `number` integers, from first to last."""
    return np.unique(np.linspace(0, number - 1, most).astype(int))


def _ask_each(paths: pa.ChunkedArray, source: str, within_s: float) -> list[Future[int]]:
    return ask(partial(_remote_size, source=source), paths.to_pylist(), within_s=within_s)


def _values(answers: list[Future[int]]) -> list[int]:
    # One file that cannot be reached must not stop the corpus from being read.
    return [answer.result() if answer.done() and answer.exception() is None else _UNKNOWN for answer in answers]


def _reason(answers: list[Future[int]]) -> tuple[str, bool]:
    """Why a server told no size at all, or nothing; and whether it was reached."""
    errors = [answer.exception() for answer in answers if answer.done()]
    if None in errors:
        return "", True
    first = next((error for error in errors if error is not None), None)
    if first is None:
        return f"no answer within {_PATIENCE_S:.0f} s", False
    return first_line(first), any(hasattr(error, "status") or _ANSWERED.search(str(error)) for error in errors)


def _found_sizes(paths: pa.ChunkedArray, source: str, end_s: float) -> np.ndarray:
    """The sizes of files on one server, as far as they are found by `end_s`."""
    if len(paths) <= _MOST_ASKED:
        return np.array(_values(_ask_each(paths, source, end_s - monotonic())), np.int64)
    sizes = np.full(len(paths), _UNKNOWN, np.int64)
    folders = pc.replace_substring_regex(paths, r"/[^/]*$", "").combine_chunks().dictionary_encode()
    numbers, names = folders.indices.to_numpy(), folders.dictionary.to_pylist()
    is_listed = not names[0].startswith(_WITHOUT_LISTING)
    if is_listed and len(paths) >= _ROWS_PER_FOLDER * len(names) and np.bincount(numbers).max() <= _MOST_IN_A_FOLDER:
        order = np.argsort(numbers, kind="stable")
        rows_of = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        listings = ask(partial(_sizes_in_folder, source=source), names, within_s=end_s - monotonic())
        for rows, listing in zip(rows_of, listings, strict=True):
            if listing.done() and listing.exception() is None:
                known, files = listing.result(), paths.take(pa.array(rows)).to_pylist()
                sizes[rows] = [known.get(unquote(path.rpartition("/")[2]), _NO_FILE) for path in files]
    return sizes


def _sizes_in_folder(folder: str, source: str) -> dict[str, int]:
    filesystem, inner = filesystem_of(with_options_of(folder, source))
    infos = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}


def _remote_size(path: str, source: str) -> int:
    filesystem, inner = filesystem_of(with_options_of(path, source))
    size = info_of(filesystem, inner).size
    return _NO_FILE if size is None else size
