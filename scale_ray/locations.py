"""Paths and URIs: where stores, runs and videos are, on local disk or an object store."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
from pyarrow import fs

from scale_ray.errors import UserError


def is_uri(location: str) -> bool:
    return "://" in location


def absolute(location: str) -> str:
    """The location as other processes will understand it: URIs as they are, paths made absolute."""
    return location if is_uri(location) else os.path.abspath(os.path.expanduser(location))


def filesystem_of(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path on it."""
    if not is_uri(location):
        return fs.LocalFileSystem(), absolute(location)
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"expected a path or a URI such as s3://bucket/folder, found {location!r}: {error}") from error


def join(location: str, *parts: str) -> str:
    return "/".join([location.rstrip("/"), *parts])


def exists(location: str) -> bool:
    filesystem, path = filesystem_of(location)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


@contextmanager
def written_whole(location: str) -> Iterator[IO[bytes]]:
    """A file for writing that appears under its name when complete, or not at all.

    On local disk it is written under another name and then renamed. Object stores show an object only
    once its upload has ended.
    """
    filesystem, path = filesystem_of(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as sink:
            yield sink
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unfinished = f"{path}.{uuid.uuid4().hex[:8]}.unfinished"
    try:
        with open(unfinished, "wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


def read_bytes(location: str) -> bytes:
    filesystem, path = filesystem_of(location)
    with filesystem.open_input_stream(path) as source:
        return source.readall()


def list_files(location: str) -> list[fs.FileInfo]:
    """Every file below a folder, in the order of their paths; none where there is no folder."""
    filesystem, path = filesystem_of(location)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    found = [info for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    return sorted(found, key=lambda info: info.path)
