"""Locations of stores, runs and videos: local paths, and URIs of object stores or servers."""

from __future__ import annotations

import copy
import functools
import io
import math
import os
import posixpath
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote, unquote

from pyarrow import fs

from scale_ray.errors import UserError, first_line, redacted
from scale_ray.files.failures import explained
from scale_ray.files.requests import ask

# A server that has not answered its first request by then counts as unreachable.
ANSWER_S = 20.0
# Read size of a remote video: FFmpeg reads 32 KiB at a time, so that 17 MiB take 545 requests; with 1 MiB they
# take 23. A file of at most `_SMALL_BYTES` is read in one request.
_READ_BYTES = 2**20
_SMALL_BYTES = 8 * 2**20
# How long a web server may send nothing.
_SILENCE_S = 15.0

# Schemes that pyarrow opens itself; all others are opened through fsspec and its drivers.
_PYARROW_SCHEMES = frozenset(("abfs", "abfss", "file", "gcs", "gs", "hdfs", "s3", "viewfs"))
# Characters that stay as they are in the path of a URI; all others are percent-encoded.
_PLAIN_IN_URIS = "/=+:@,;!$&'()*~"
# What a path that comes from data may be, besides local; other drivers run programs, open archives or write caches.
_SCHEMES_IN_DATA = ("abfs", "abfss", "az", "file", "gcs", "gs", "hf", "http", "https", "s3")
# Azure's driver sends the user's token to whatever host a URI names.
_AZURE_SCHEMES = ("abfs", "abfss", "az")
_AZURE_HOST = re.compile(r"([a-z0-9$-]+@)?[a-z0-9-]+(\.(blob|dfs)\.core\.windows\.net)?")
# Libraries drop some of these, after which a path can lead elsewhere.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)([^?]*)(.*)", re.DOTALL)

_Value = TypeVar("_Value")


def is_uri(location: str) -> bool:
    return _URI.match(location) is not None


def absolute(location: str) -> str:
    """The location in a form that any process can use: URIs are unchanged, local paths become absolute."""
    return location if is_uri(location) else os.path.abspath(os.path.expanduser(location))


def join(location: str, *parts: str) -> str:
    """Append `parts` to the location of a folder.

    Each part is a plain name, or several names separated by `/`. In a URI the parts are percent-encoded and
    inserted before the `?options`.
    """
    if not is_uri(location):
        return "/".join([location.rstrip("/"), *parts])
    uri = _Uri.parse(location)
    path = "/".join([uri.path.rstrip("/"), *(quote(part, safe=_PLAIN_IN_URIS) for part in parts)])
    return uri._replace(path=path).text()


def parent(location: str) -> str | None:
    """The folder that contains a file or folder; None for the root, a bucket and a server."""
    if not is_uri(location):
        inner = absolute(location)
        return posixpath.dirname(inner) if inner != "/" else None
    uri = _Uri.parse(location)
    folder, _, name = uri.path.rstrip("/").rpartition("/")
    # Without a host, the root is the folder `/`.
    return uri._replace(path=folder or ("" if uri.host else "/")).text() if name else None


def server_of(uri: str) -> str:
    """The scheme and the host or bucket of a URI."""
    return _Uri.parse(uri)._replace(path="", options="").text()


def without_options(location: str) -> str:
    """A URI without its options, which begin with `?`; a local path is unchanged."""
    return location.partition("?")[0] if is_uri(location) else location


def showable(location: str) -> str:
    """A location as it may be shown and recorded: a URI without user, password, keys and options."""
    # Spaces and quotes would end a URI in a text, but not one that stands alone.
    return redacted(re.sub(r"[\s'\"<>]", lambda found: quote(found[0]), location)) if is_uri(location) else location


def options_of(location: str) -> str:
    """The options of a URI, beginning with `?`, or nothing; in a URL of a web server `?...` belongs to the file."""
    uri = _Uri.parse(location) if is_uri(location) else None
    return "" if uri is None or uri.scheme in ("http", "https") else uri.options


def with_options_of(location: str, trusted: str) -> str:
    """A location with the options of another one, if both have the same scheme and host.

    Options are a user's own: paths in data have none, and get those of the location that the user gave.
    """
    if not is_uri(location) or not is_uri(trusted) or options_of(location):
        return location
    uri, given = _Uri.parse(location), _Uri.parse(trusted)
    return location + options_of(trusted) if (uri.scheme, uri.host) == (given.scheme, given.host) else location


def check_from_data(location: str) -> str:
    """Check a path that data names: a manifest, a store, an aggregator or a request. Returns it.

    It may be a local path or a URI with one of a few schemes, without options: options become arguments of a driver,
    which could write files elsewhere or send credentials to another server.

    Raises
    ------
    UserError
        If it is anything else.
    """
    if not is_uri(location):
        return location
    uri = _Uri.parse(location)
    if uri.scheme not in _SCHEMES_IN_DATA or "::" in uri.host:
        raise UserError(f"expected a local path or a URI with one of {', '.join(_SCHEMES_IN_DATA)}, found {location!r}")
    if _CONTROL.search(location):
        raise UserError(f"expected a URI without control characters, found {location!r}")
    if uri.scheme in _AZURE_SCHEMES and not _AZURE_HOST.fullmatch(uri.host):
        raise UserError(
            f"expected {uri.scheme}://CONTAINER@ACCOUNT of Azure itself, found {location!r}: its host would get the "
            "user's token"
        )
    if options_of(location):
        raise UserError(
            f"expected a path without options, found some behind the ? of {location!r}; they are given on the command "
            "line, with the folder or the manifest"
        )
    return location


def is_below(location: str, folders: Sequence[str]) -> bool:
    """Whether a path or URI is in one of these folders, or further down in one, whatever `..` or links it contains."""
    return any(_is_below(location, folder) for folder in folders)


def _is_below(location: str, folder: str) -> bool:
    if _CONTROL.search(location):
        return False
    location, folder = local_path(location), local_path(folder)
    if is_uri(location) != is_uri(folder):
        return False
    if not is_uri(location):
        return _is_really_below(location, folder)
    uri, allowed = _Uri.parse(location), _Uri.parse(folder)
    path = unquote(uri.path)
    if ".." in path.replace("\\", "/").split("/"):
        return False
    return (uri.scheme, uri.host) == (allowed.scheme, allowed.host) and path.startswith(
        unquote(allowed.path).rstrip("/") + "/"
    )


def _is_really_below(path: str, folder: str) -> bool:
    """Whether a local path is in a local folder, or is that folder, after all links are resolved."""
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def filesystem_of(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the decoded path in that file system.

    S3, Google Cloud Storage, Azure and HDFS are opened by pyarrow. Any other scheme, such as https or hf, is
    opened through fsspec and needs the package of its driver. File systems are cached and shared.

    Raises
    ------
    UserError
        If a URI is invalid, or its file system cannot be opened.
    """
    if not is_uri(location):
        return fs.LocalFileSystem(), absolute(location)
    uri = _Uri.parse(location)
    try:
        if uri.scheme in ("http", "https"):
            # In a URL `?...` belongs to the file, and the percent-encoding is kept.
            return _fsspec_filesystem(uri._replace(path="", options="").text()), location
        if uri.scheme not in _PYARROW_SCHEMES:
            filesystem = _fsspec_filesystem(uri._replace(path="").text())
            plain = uri._replace(path=unquote(uri.path), options="").text()
            return filesystem, filesystem.handler.fs._strip_protocol(plain)
        filesystem, root = _pyarrow_filesystem(uri._replace(path="/").text())
    except ImportError as error:
        raise UserError(f"{location}: expected the package for this scheme, found none: {first_line(error)}") from error
    except Exception as error:  # drivers raise errors of any type
        raise UserError(
            f"expected a path or a URI such as s3://bucket/folder, found {location!r}: {first_line(error)}"
        ) from error
    separator = "/" if root and not root.endswith("/") else ""
    return filesystem, f"{root}{separator}{unquote(uri.path)[1:]}".rstrip("/") or root


class _Uri(NamedTuple):
    """SCHEME://HOST/PATH?OPTIONS; `path` and `options` include their leading `/` and `?`, or are empty."""

    scheme: str
    host: str
    path: str
    options: str

    @classmethod
    def parse(cls, location: str) -> _Uri:
        match = _URI.fullmatch(location)
        assert match is not None, location
        scheme, host, path, options = match.groups()
        return cls(scheme.lower(), host, path, options)

    def text(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}{self.options}"


@functools.lru_cache(maxsize=64)
def _pyarrow_filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI's root and the path in it; cached, because opening one on S3 takes requests."""
    return fs.FileSystem.from_uri(root)


@functools.lru_cache(maxsize=64)
def _fsspec_filesystem(root: str) -> fs.PyFileSystem:
    """The file system of a URI without its path; the options become keyword arguments of the driver."""
    import fsspec.core  # imported here, because most commands do not need it

    url, _, options = root.partition("?")
    keywords: dict[str, Any] = dict(parse_qsl(options))
    if url.startswith(("http://", "https://")):
        import aiohttp

        # The default is 300 s for a whole file, which is too little for a large one and too much for a silent server.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
        keywords["client_kwargs"] = {"timeout": limits}
    driver, _ = fsspec.core.url_to_fs(url, **keywords)
    return fs.PyFileSystem(fs.FSSpecHandler(driver))


def local_path(location: str) -> str:
    """The local path of a `file://` URI; other locations are unchanged."""
    uri = _Uri.parse(location) if is_uri(location) else None
    return unquote(uri.path) if uri is not None and uri.scheme == "file" and not uri.host else location


def check_within(folder: str, root: str) -> None:
    """Check that a folder lies in another one, whatever links there are: they may be somebody else's.

    Raises
    ------
    UserError
        If it is a link to elsewhere, or below one. (Folders of an object store have no links.)
    """
    folder, root = local_path(folder), local_path(root)
    if not is_uri(folder) and not _is_really_below(folder, root):
        raise UserError(f"{folder}: expected a folder in {root}, found a link to {os.path.realpath(folder)}")


def files_in(folder: str) -> list[fs.FileInfo]:
    """The files directly in a folder, sorted by path, without links; none if it does not exist."""
    filesystem, path = filesystem_of(folder)
    infos = _listed(filesystem, fs.FileSelector(path, allow_not_found=True))
    files = [info for info in infos if info.type == fs.FileType.File]
    if isinstance(filesystem, fs.LocalFileSystem):
        files = [info for info in files if not os.path.islink(info.path)]
    return sorted(files, key=lambda info: info.path)


def private_folder() -> Path:
    """A folder for temporary files that no other user of the machine can read or write.

    Files with predictable names must not lie in the system's temporary folder itself, where anybody could put them.

    Raises
    ------
    UserError
        If somebody else made it, or others can write to it.
    """
    folder = Path(tempfile.gettempdir(), f"scale-ray-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise UserError(f"expected {folder} to be a folder that only this user can open, found another; remove it")
    return folder


def first_answer(function: Callable[[str], _Value], location: str) -> _Value:
    """The result of the first request to a location that a user gave; `function` makes it.

    Raises
    ------
    UserError
        If the server of a URI refuses it, cannot be reached or does not answer in time.
    """
    if not is_uri(location):
        return function(location)
    [answer] = ask(function, [location], within_s=ANSWER_S)
    if not answer.done():
        raise UserError(f"expected an answer from {showable(server_of(location))}, found none within {ANSWER_S:.0f} s")
    error = answer.exception()
    if error is None or isinstance(error, UserError):
        return answer.result()
    raise UserError(f"expected to reach {showable(location)}, found: {first_line(error)}") from error


def info_of(filesystem: fs.FileSystem, path: str) -> fs.FileInfo:
    """What is at a path of a file system: its kind and, for a file, its size.

    Raises
    ------
    OSError
        If the server cannot be reached. (pyarrow and fsspec would report a file of a web server as missing then.)
    """
    if not isinstance(filesystem, fs.PyFileSystem) or not path.startswith(("http://", "https://")):
        return _impatient(filesystem).get_file_info(path)
    try:
        return fs.FileInfo(path, fs.FileType.File, size=filesystem.handler.fs.info(path)["size"])
    except FileNotFoundError as error:
        if error.__cause__ is not None and not hasattr(error.__cause__, "status"):
            raise OSError(first_line(error.__cause__)) from error.__cause__
    return fs.FileInfo(path, fs.FileType.NotFound)


_impatient_copies: dict[int, tuple[fs.FileSystem, fs.FileSystem]] = {}


def _impatient(filesystem: fs.FileSystem) -> fs.FileSystem:
    """A file system that soon gives up a request to a silent server, which the end of the process would wait for.

    A file system on S3 that was opened by its URI repeats a request ten times, which takes 100 s; a copy of it repeats
    one three times.
    """
    if not isinstance(filesystem, fs.S3FileSystem):
        return filesystem
    if id(filesystem) not in _impatient_copies:  # with the original, so that its id stays its own
        _impatient_copies[id(filesystem)] = (filesystem, copy.copy(filesystem))
    return _impatient_copies[id(filesystem)][1]


def exists(location: str) -> bool:
    filesystem, path = filesystem_of(location)
    return info_of(filesystem, path).type != fs.FileType.NotFound


def open_input(location: str) -> IO[bytes]:
    """Open a file for random access, with few requests if it is remote.

    A small file is read into memory. If the server cannot send parts of a file, the file is copied to a temporary
    file.

    Raises
    ------
    OSError
        If the file does not exist or the server does not answer.
    """
    filesystem, path = filesystem_of(location)
    if not isinstance(filesystem, fs.PyFileSystem):
        file = filesystem.open_input_file(path)
        return _in_memory(file) if file.size() <= _SMALL_BYTES else io.BufferedReader(file, _READ_BYTES)
    driver = filesystem.handler.fs
    file = driver.open(path, "rb", block_size=_READ_BYTES)
    if (getattr(file, "size", None) or math.inf) <= _SMALL_BYTES:
        return _in_memory(file)
    try:
        # Only a request for a part of the file shows whether the server can send parts.
        file.seek(-1, os.SEEK_END)
        file.read(1)
        file.seek(0)
    except ValueError:
        file.close()
        return _temporary_copy(driver, path)
    return file


def _in_memory(file: Any) -> IO[bytes]:
    with file:
        return io.BytesIO(file.read())


def _temporary_copy(driver: Any, path: str) -> IO[bytes]:
    with ExitStack() as on_error:
        copy = on_error.enter_context(tempfile.TemporaryFile())
        driver.get_file(path, copy)
        copy.seek(0)
        on_error.pop_all()
    return copy


@contextmanager
def atomic_write(location: str) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when it is complete.

    On local disk it is written under a temporary name and then renamed. For an object store it is collected in
    memory and uploaded at the end, because closing an interrupted upload would publish an incomplete file.

    Raises
    ------
    UserError, RunFailed
        If it cannot be written: the message names it.
    """
    filesystem, path = filesystem_of(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        buffer = io.BytesIO()
        yield buffer
        with explained(location), filesystem.open_output_stream(path) as sink:
            sink.write(buffer.getbuffer())
        return
    unfinished = f"{path}.{uuid.uuid4().hex[:8]}.unfinished"
    try:
        with explained(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(unfinished, "wb") as sink:
                yield sink
                sink.flush()
                os.fsync(sink.fileno())
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):  # it does not exist, or the file system became read-only
            os.unlink(unfinished)


def read_bytes(location: str) -> bytes:
    filesystem, path = filesystem_of(location)
    # Not opened as a stream: some servers cannot send parts of a file.
    with filesystem.open_input_file(path) as source:
        return source.readall()


def list_files(location: str) -> list[fs.FileInfo]:
    """All files below a folder, sorted by path; empty if the folder does not exist."""
    filesystem, path = filesystem_of(location)
    infos = _listed(filesystem, fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted((info for info in infos if info.type == fs.FileType.File), key=lambda info: info.path)


def _listed(filesystem: fs.FileSystem, selector: fs.FileSelector) -> list[fs.FileInfo]:
    try:
        return filesystem.get_file_info(selector)
    except FileNotFoundError:
        # Arrow did not find the folder, and found it when it looked again: another process has just made it.
        return filesystem.get_file_info(selector)
