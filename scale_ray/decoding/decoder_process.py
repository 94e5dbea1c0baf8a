"""Runs the decoder in a child process with a deadline, so that a crash or a hang costs only one video.

Decoders are third-party code that reads untrusted files. The child process receives one video at a time and writes the
pixels into shared memory. If it dies or does not answer in time, that video counts as failed, and a new child process
decodes the next one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from mmap import mmap
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import IO, Any, TypeVar

import numpy as np

from scale_ray.clips import VideoGeometry
from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips, pixel_shape
from scale_ray.decoding.video_file import Source
from scale_ray.errors import VideoError
from scale_ray.files.import_path import safe_path

_START_TIMEOUT_S = 60.0
_NICENESS = 5
_CHILD = "from scale_ray.decoding.decoder_process import serve; serve()"

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Request:
    """One video to decode, and the byte offset of its pixels in the shared memory for each input size.

    A segment of a file has `start_s` and, unless it ends with the file, `end_s`.
    """

    path: str
    video_id: str
    mode: str
    sampling: Sampling
    input_sizes_px: tuple[int, ...]
    offsets: tuple[int, ...]
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Call:
    """A function of this package for the child to call; it may read a file, but does not change the pixels."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Decoded:
    """The child's answer after it has written the pixels of a video: `positions` float32 (clips, 7).

    `size_bytes` is the size of the file, None if it is not known.
    """

    positions: np.ndarray
    geometry: VideoGeometry
    size_bytes: int | None = None


class SharedPixels:
    """Memory of `num_bytes` bytes that a child process can write to."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.file = _unnamed_file()
        os.ftruncate(self.file, num_bytes)
        self.memory = mmap(self.file, num_bytes)

    @property
    def in_use(self) -> bool:
        """Whether a view of the memory still exists; its content must not be overwritten while one does."""
        try:
            self.memory.resize(self.num_bytes)  # fails while a view exists; otherwise changes nothing
        except BufferError:
            return True
        return False

    def __del__(self) -> None:
        # The mapping itself lives as long as a view of it.
        os.close(self.file)


def _unnamed_file() -> int:
    """An in-memory file, outside /dev/shm, which is small in containers; on systems without it, a file on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("scale-ray-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Decoder:
    """A child process that decodes one video after the other.

    `timeout_s` is the maximum time per video, `memory_gib` the maximum memory that the child may map. Close it, or use
    it as a context manager.
    """

    def __init__(self, *, timeout_s: float, memory_gib: float) -> None:
        self._timeout_s, self._memory_gib = timeout_s, memory_gib
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._pixels: SharedPixels | None = None

    def decode(self, request: Request, pixels: SharedPixels) -> Decoded:
        """Decode one video's planned clips into the shared memory.

        Raises
        ------
        VideoError
            If the video cannot be decoded, takes too long, or crashes the decoder.
        """
        answer = self._answer_to(request, pixels)
        assert isinstance(answer, Decoded)
        return answer

    def call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call a function of this package in the child and return its result.

        Raises
        ------
        VideoError
            If the function raises one, takes too long, or crashes the child.
        """
        return self._answer_to(Call(function, arguments), None)

    def _answer_to(self, request: Request | Call, pixels: SharedPixels | None) -> Any:
        connection, process = self._ready(pixels)
        try:
            connection.send(request)
            answered = connection.poll(self._timeout_s)
        except OSError:
            answered = True  # the child died: `recv` below reports it
        if not answered:
            self.close()
            raise VideoError("decode", f"took longer than {self._timeout_s:g} s (--decode-timeout-s)")
        try:
            answer = connection.recv()
        except (EOFError, OSError) as error:
            code = process.wait()
            self.close()
            raise VideoError("decode", f"crashed the decoder: {_exit_reason(code)}") from error
        if isinstance(answer, VideoError):
            raise answer
        return answer

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = self._pixels = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ready(self, pixels: SharedPixels | None) -> tuple[Connection, subprocess.Popen[bytes]]:
        """A running child and the connection to it; the child has mapped `pixels`, if given."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None or self._connection is None:
            self._process, self._connection = self._start()
        if pixels is not None and self._pixels is not pixels:
            self._connection.send(pixels.num_bytes)
            send_handle(self._connection, pixels.file, self._process.pid)
            self._pixels = pixels
        return self._connection, self._process

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        parent_end, child_end = socket.socketpair()
        with tempfile.TemporaryFile() as errors, child_end:
            process = subprocess.Popen(
                # Not `-m`: the child's classes would belong to `__main__` and differ from the parent's.
                # `-P` and `safe_path`: nothing is imported from the current folder.
                [sys.executable, "-P", "-c", _CHILD, str(child_end.fileno()), str(self._memory_gib)],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                # In a cluster job, the package may be on a path that only this process has.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(safe_path())},
            )
            child_end.close()
            connection = Connection(parent_end.detach())
            try:
                if not connection.poll(_START_TIMEOUT_S):
                    raise EOFError
                connection.recv()
            except (EOFError, OSError) as error:
                process.kill()
                code = process.wait()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                raise RuntimeError(f"the decoder process did not start ({_exit_reason(code)}): {lines[-1:]}") from error
        return process, connection


def _exit_reason(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed from outside, possibly because memory ran out"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def serve() -> None:
    """Run the child process: answer requests until the parent closes the connection."""
    connection, memory_gib = Connection(int(sys.argv[1])), float(sys.argv[2])
    # Backbones get priority: their threads wait for each other, so a missing core costs them more than a decoder.
    os.nice(_NICENESS)
    limit = int(memory_gib * 2**30)
    # Not supported on every system; the deadline applies anyway.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    connection.send("ready")
    memory: mmap | None = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, int):  # the size of new shared memory
            file = recv_handle(connection)
            memory = mmap(file, message)
            os.close(file)
            continue
        connection.send(_answer(message, memory, memory_gib))


def _end_with_parent(parent_pid: int) -> None:
    """Exit when the parent is gone: a hanging decoder would not notice the closed connection."""
    while os.getppid() == parent_pid:
        time.sleep(1)
    os._exit(1)


def _answer(request: Request | Call, memory: mmap | None, memory_gib: float) -> Any:
    """The result of a request, or the VideoError that it caused."""
    try:
        if isinstance(request, Call):
            return request.function(*request.arguments)
        assert memory is not None
        return _decode(request, memory)
    except VideoError as error:
        return _sendable(error, error.__cause__ or error)
    except MemoryError as error:
        reason = f"needs more than {memory_gib:g} GiB (--decode-memory-gib)"
        return _sendable(VideoError("decode", reason), error)
    except Exception as error:  # noqa: BLE001 - a single video must never end the run
        return _sendable(VideoError("decode", f"{type(error).__name__}: {error}"), error)


def _decode(request: Request, memory: mmap) -> Decoded:
    into: Sequence[np.ndarray] = [
        np.ndarray(pixel_shape(request.mode, request.sampling, size), np.uint8, memory, offset)
        for size, offset in zip(request.input_sizes_px, request.offsets, strict=True)
    ]
    sizes: list[int] = []
    source = as_source(request.path, sizes)
    clips = decode_clips(
        source,
        request.video_id,
        request.mode,
        request.sampling,
        request.input_sizes_px,
        into,
        start_s=request.start_s,
        end_s=request.end_s,
    )
    if source == request.path:
        with contextlib.suppress(OSError):
            sizes.append(os.path.getsize(request.path))
    return Decoded(clips.positions, clips.geometry, sizes[-1] if sizes else None)


def as_source(path: str, sizes: list[int] | None = None) -> Source:
    """The source to decode from: a local path as it is, or a function that opens the URI.

    The function appends the size of the file in bytes to `sizes`.
    """
    if "://" not in path:
        return path
    # Imported only for URIs: it loads the libraries of all file systems.
    from scale_ray.files.locations import open_input

    def opened() -> IO[bytes]:
        file = open_input(path)
        if sizes is not None:
            sizes.append(file.seek(0, os.SEEK_END))
            file.seek(0)
        return file

    return opened


def _sendable(error: VideoError, cause: BaseException) -> VideoError:
    """The error with its cause as text: some exceptions of libraries cannot be pickled."""
    return VideoError(error.stage, error.reason, exception=repr(cause))
