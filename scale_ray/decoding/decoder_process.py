"""Decoding in a child process with a deadline: what crashes or hangs a decoder costs one video.

A decoder is foreign code that reads foreign files. It runs in a process of its own, which is asked for one
video at a time and writes the pixels into memory that both processes see. Where it dies, or does not
answer in time, that video has failed, and a fresh process takes the next one.
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
from typing import Any, TypeVar

import numpy as np

from scale_ray.clips import VideoGeometry
from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips, pixel_shape
from scale_ray.decoding.frames import Source
from scale_ray.errors import VideoError

_START_TIMEOUT_S = 60.0
_NICENESS = 5
_CHILD = "from scale_ray.decoding.decoder_process import serve; serve()"

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Request:
    """One video, and where in the shared memory its pixels go: an offset in bytes for each side."""

    path: str
    video_id: str
    mode: str
    sampling: Sampling
    input_sizes_px: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A function of this package for the child to call; it looks into a file and leaves the pixels alone."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Decoded:
    """What the child says of a video whose pixels it wrote: `positions` float32 (clips, 7)."""

    positions: np.ndarray
    geometry: VideoGeometry


class SharedPixels:
    """Memory of a given size, in bytes, that a child process can write to."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.file = _unnamed_file()
        os.ftruncate(self.file, num_bytes)
        self.memory = mmap(self.file, num_bytes)

    @property
    def in_use(self) -> bool:
        """Whether anybody still looks at the memory: what was written must stay as it is until then."""
        try:
            self.memory.resize(self.num_bytes)  # refused while a view of it exists, and changes nothing
        except BufferError:
            return True
        return False

    def __del__(self) -> None:
        # The mapping lives as long as somebody looks at it.
        os.close(self.file)


def _unnamed_file() -> int:
    """A file of memory; not in /dev/shm, which containers keep small. Elsewhere than on Linux one of disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("scale-ray-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Decoder:
    """A child process that decodes one video after the other.

    `timeout_s` is the longest that one video may take, `memory_gib` the most memory that the child may
    map. Close it, or use it as a context.
    """

    def __init__(self, *, timeout_s: float, memory_gib: float) -> None:
        self._timeout_s, self._memory_gib = timeout_s, memory_gib
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._pixels: SharedPixels | None = None

    def decode(self, request: Request, pixels: SharedPixels) -> Decoded:
        """Decode one video's planned clips into the shared memory.

        Raises
        ------
        VideoError
            Where the video cannot be decoded, takes too long, or crashes the decoder.
        """
        answer = self._answer_to(request, pixels)
        assert isinstance(answer, Decoded)
        return answer

    def call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """What a function of this package returns, called in the child.

        Raises
        ------
        VideoError
            As the function raises it, or where it takes too long or crashes the child.
        """
        return self._answer_to(Call(function, arguments), None)

    def _answer_to(self, request: Request | Call, pixels: SharedPixels | None) -> Any:
        connection, process = self._ready(pixels)
        try:
            connection.send(request)
            answered = connection.poll(self._timeout_s)
        except OSError:
            answered = True  # it died: receiving says so
        if not answered:
            self.close()
            raise VideoError("decode", f"took longer than {self._timeout_s:g} s (--decode-timeout-s)")
        try:
            answer = connection.recv()
        except (EOFError, OSError) as error:
            code = process.wait()
            self.close()
            raise VideoError("decode", f"crashed the decoder: {_death(code)}") from error
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

    def _ready(self, pixels: SharedPixels | None) -> tuple[Connection, subprocess.Popen]:
        """The connection to a living child that sees these pixels, if any."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None or self._connection is None:
            self._process, self._connection = self._start()
        if pixels is not None and self._pixels is not pixels:
            self._connection.send(pixels.num_bytes)
            send_handle(self._connection, pixels.file, self._process.pid)
            self._pixels = pixels
        return self._connection, self._process

    def _start(self) -> tuple[subprocess.Popen, Connection]:
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as errors, theirs:
            process = subprocess.Popen(
                # Not `-m`: as __main__ the child's classes would be others than ours.
                [sys.executable, "-c", _CHILD, str(theirs.fileno()), str(self._memory_gib)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                # In a cluster job the package may come from a path that only this process knows.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            theirs.close()
            connection = Connection(ours.detach())
            try:
                if not connection.poll(_START_TIMEOUT_S):
                    raise EOFError
                connection.recv()
            except (EOFError, OSError) as error:
                process.kill()
                code = process.wait()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise RuntimeError(f"the decoder process did not start ({_death(code)}): {said[-1:]}") from error
        return process, connection


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "it was killed from outside, as for want of memory"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def serve() -> None:
    """The child's life: answer requests until the other side is gone."""
    connection, memory_gib = Connection(int(sys.argv[1])), float(sys.argv[2])
    # A backbone that waits for a core loses more than a decoder does: its threads wait for each other.
    os.nice(_NICENESS)
    limit = int(memory_gib * 2**30)
    # Not everywhere supported; the deadline holds anyway.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    connection.send("ready")
    memory: mmap | None = None
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        if isinstance(asked, int):
            file = recv_handle(connection)
            memory = mmap(file, asked)
            os.close(file)
            continue
        connection.send(_answer(asked, memory, memory_gib))


def _end_with_parent(parent: int) -> None:
    """A decoder that hangs does not notice that nobody waits any more."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _answer(request: Request | Call, memory: mmap | None, memory_gib: float) -> Any:
    """What was asked for, or a VideoError."""
    try:
        if isinstance(request, Call):
            return request.function(*request.arguments)
        assert memory is not None
        return _decoded(request, memory)
    except VideoError as error:
        return _sendable(error, error.__cause__ or error)
    except MemoryError as error:
        reason = f"needs more than {memory_gib:g} GiB (--decode-memory-gib)"
        return _sendable(VideoError("decode", reason), error)
    except Exception as error:  # noqa: BLE001 - one video among a million never ends the run
        return _sendable(VideoError("decode", f"{type(error).__name__}: {error}"), error)


def _decoded(request: Request, memory: mmap) -> Decoded:
    into: Sequence[np.ndarray] = [
        np.ndarray(pixel_shape(request.mode, request.sampling, side), np.uint8, memory, offset)
        for side, offset in zip(request.input_sizes_px, request.offsets, strict=True)
    ]
    clips = decode_clips(
        source_of(request.path), request.video_id, request.mode, request.sampling, request.input_sizes_px, into
    )
    return Decoded(clips.positions, clips.geometry)


def source_of(path: str) -> Source:
    """How a path or URI is opened."""
    if "://" not in path:
        return path
    # Only then: it brings the libraries of all file systems with it.
    from scale_ray.locations import open_input

    return lambda: open_input(path)


def _sendable(error: VideoError, cause: BaseException) -> VideoError:
    """The error with its cause as text: exceptions of libraries do not all survive the way."""
    return VideoError(error.stage, error.reason, exception=repr(cause))
