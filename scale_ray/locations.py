"""Paths and URIs: where stores, runs and videos are, on local disk, an object store or a server."""

from __future__ import annotations

import functools
import io
import math
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote

from pyarrow import fs

from scale_ray.errors import UserError, first_line

# Requests to a remote file system that are under way at once.
REQUESTS_AT_ONCE = 16
# What is read at once of a remote video: FFmpeg itself asks for 32 KiB at a time, 545 requests for 17 MiB
# where 1 MiB makes it 23. A smaller file than that of `_SMALL_BYTES` is one request.
_READ_BYTES = 2**20
_SMALL_BYTES = 8 * 2**20

# What pyarrow opens itself; other schemes are those of fsspec and its drivers.
_PYARROW_SCHEMES = frozenset(("abfs", "abfss", "file", "gcs", "gs", "hdfs", "s3", "viewfs"))
# What a URI's path may hold as it is; the rest is percent-encoded.
_PLAIN_IN_URIS = "/=+:@,;!$&'()*~"
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)([^?]*)(.*)", re.DOTALL)


def is_uri(location: str) -> bool:
    return _URI.match(location) is not None


def absolute(location: str) -> str:
    """The location as other processes will understand it: URIs as they are, paths made absolute."""
    return location if is_uri(location) else os.path.abspath(os.path.expanduser(location))


def join(location: str, *parts: str) -> str:
    """The location of what is called `parts` below a folder.

    The parts are plain names, or several of them with `/` in between. In a URI they are percent-encoded,
    and stand before its `?options`.
    """
    if not is_uri(location):
        return "/".join([location.rstrip("/"), *parts])
    uri = _Uri.of(location)
    path = "/".join([uri.path.rstrip("/"), *(quote(part, safe=_PLAIN_IN_URIS) for part in parts)])
    return uri._replace(path=path).text()


def parent(location: str) -> str | None:
    """The folder that holds a file or folder; None at the root and for a whole bucket or server."""
    if not is_uri(location):
        inner = absolute(location)
        return posixpath.dirname(inner) if inner != "/" else None
    uri = _Uri.of(location)
    folder, _, name = uri.path.rstrip("/").rpartition("/")
    # Without a host, the root is the folder `/`.
    return uri._replace(path=folder or ("" if uri.host else "/")).text() if name else None


def without_options(location: str) -> str:
    """A URI without its options, which begin with `?`; a local path as it is."""
    return location.partition("?")[0] if is_uri(location) else location


def filesystem_of(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path on it, decoded.

    S3, Google Cloud Storage, Azure and HDFS are pyarrow's own. Any other scheme, such as https or hf, is
    opened through fsspec, and needs the driver's package. A file system is made once and then shared.

    Raises
    ------
    UserError
        Where a URI cannot be understood, or its file system cannot be had.
    """
    if not is_uri(location):
        return fs.LocalFileSystem(), absolute(location)
    uri = _Uri.of(location)
    try:
        if uri.scheme in ("http", "https"):
            # Here `?...` belongs to the file, and what is percent-encoded stays so.
            return _fsspec_filesystem(uri._replace(path="", options="").text()), location
        if uri.scheme not in _PYARROW_SCHEMES:
            filesystem = _fsspec_filesystem(uri._replace(path="").text())
            plain = uri._replace(path=unquote(uri.path), options="").text()
            return filesystem, filesystem.handler.fs._strip_protocol(plain)
        filesystem, root = _pyarrow_filesystem(uri._replace(path="/").text())
    except ImportError as error:
        raise UserError(f"{location}: expected the package for such URIs, found none: {first_line(error)}") from error
    except Exception as error:  # a driver raises what it likes
        raise UserError(
            f"expected a path or a URI such as s3://bucket/folder, found {location!r}: {first_line(error)}"
        ) from error
    between = "/" if root and not root.endswith("/") else ""
    return filesystem, f"{root}{between}{unquote(uri.path)[1:]}".rstrip("/") or root


class _Uri(NamedTuple):
    """SCHEME://HOST/PATH?OPTIONS; `path` and `options` begin with their mark, or are empty."""

    scheme: str
    host: str
    path: str
    options: str

    @classmethod
    def of(cls, location: str) -> _Uri:
        found = _URI.fullmatch(location)
        assert found is not None, location
        scheme, host, path, options = found.groups()
        return cls(scheme.lower(), host, path, options)

    def text(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}{self.options}"


@functools.lru_cache(maxsize=64)
def _pyarrow_filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system and, on it, the path of a URI's root: to make one for S3 takes requests of its own."""
    return fs.FileSystem.from_uri(root)


@functools.lru_cache(maxsize=64)
def _fsspec_filesystem(root: str) -> fs.PyFileSystem:
    """The file system of a URI without its path; its options are the driver's keywords."""
    import fsspec.core  # only here: not every command reads from a server

    url, _, options = root.partition("?")
    driver, _ = fsspec.core.url_to_fs(url, **dict(parse_qsl(options)))
    return fs.PyFileSystem(fs.FSSpecHandler(driver))


def exists(location: str) -> bool:
    filesystem, path = filesystem_of(location)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def open_input(location: str) -> IO[bytes]:
    """A video opened for reading at any place, in few requests where it is remote.

    A small file is read whole. One that the server can only send whole is copied to a temporary file.

    Raises
    ------
    OSError
        Where there is no such file or the server does not answer.
    """
    filesystem, path = filesystem_of(location)
    if not isinstance(filesystem, fs.PyFileSystem):
        file = filesystem.open_input_file(path)
        return _whole(file) if file.size() <= _SMALL_BYTES else io.BufferedReader(file, _READ_BYTES)
    driver = filesystem.handler.fs
    file = driver.open(path, "rb", block_size=_READ_BYTES)
    if (getattr(file, "size", None) or math.inf) <= _SMALL_BYTES:
        return _whole(file)
    try:
        # That a server cannot send a part of a file shows only when it is asked for one.
        file.seek(-1, os.SEEK_END)
        file.read(1)
        file.seek(0)
    except ValueError:
        file.close()
        return _copy(driver, path)
    return file


def _whole(file: Any) -> IO[bytes]:
    with file:
        return io.BytesIO(file.read())


def _copy(driver: Any, path: str) -> IO[bytes]:
    with ExitStack() as if_it_fails:
        copy = if_it_fails.enter_context(tempfile.TemporaryFile())
        driver.get_file(path, copy)
        copy.seek(0)
        if_it_fails.pop_all()
    return copy


@contextmanager
def atomic_write(location: str) -> Iterator[IO[bytes]]:
    """A file for writing that appears under its name when complete, or not at all.

    On local disk it is written under another name and then renamed. For an object store it is gathered in
    memory and put at once: closing an upload that broke off would show what there is of it.
    """
    filesystem, path = filesystem_of(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        gathered = io.BytesIO()
        yield gathered
        with filesystem.open_output_stream(path) as sink:
            sink.write(gathered.getbuffer())
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
    # Not as a stream: of a server that cannot send a part of a file, only the whole can be read.
    with filesystem.open_input_file(path) as source:
        return source.readall()


def list_files(location: str) -> list[fs.FileInfo]:
    """Every file below a folder, in the order of their paths; none where there is no folder."""
    filesystem, path = filesystem_of(location)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    found = [info for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    return sorted(found, key=lambda info: info.path)
