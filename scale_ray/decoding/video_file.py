"""Opens video files: what FFmpeg may read, and the video stream of a container."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import av
import av.error
from av.format import formats_available
from av.stream import Discard, Disposition

from scale_ray.decoding.animated_webp import decoded_webp, is_animated_webp
from scale_ray.decoding.container_end import ContainerEnd, read_container_end
from scale_ray.errors import VideoError

# A local path, or a function that opens the file at its beginning.
Source = str | Callable[[], IO[bytes]]

# Formats that hold no video but point to other files, servers or devices, or are programs for a frame server.
_POINTING = {"avisynth", "concat", "dash", "hls", "image2", "imf", "sdp", "vapoursynth", "vobsub", "webm_dash_manifest"}
# FFmpeg reads the file object that it is given and opens nothing else, whatever the file says: not even the external
# parts of a MOV file, which are off anyway. The list of formats refuses earlier, before a header is read.
_OPENS_NOTHING = {"protocol_whitelist": "none", "format_whitelist": ",".join(sorted(formats_available - _POINTING))}
# How they begin, to say what was found.
_BEGINNINGS = {
    b"#EXTM3U": "a playlist (hls)",
    b"ffconcat": "a script (ffconcat)",
    b"v=0": "a session description (sdp)",
    b"# VobSub": "an index of subtitles (vobsub)",
}
# Formats that FFmpeg opens although they are not videos: text as terminal art, subtitles.
_NOT_VIDEO = {"tty", "lrc", "srt", "webvtt", "ass"}
# Formats of single images have names that end so.
_IMAGES = ("_pipe", "ico")
_ONLY_A_PICTURE = "only a picture"
_ONLY_PICTURES = "only pictures one after another: states neither time stamps nor a frame rate"
_BEGINNING_BYTES = 16


@dataclass(frozen=True)
class VideoFile:
    """An open video file: FFmpeg's container, its video stream, and where the container's own structure ends."""

    file: IO[bytes]
    container: Any
    stream: Any
    end: ContainerEnd


@contextmanager
def open_video(source: Source) -> Iterator[VideoFile]:
    """Open a video file; its video stream is set up for decoding. A cover or another still picture does not count.

    Raises
    ------
    VideoError
        Stage `open` if the source is not a readable video.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_opened(source))
            _check_beginning(file)
            if is_animated_webp(file):
                file = decoded_webp(file)
            end = read_container_end(file)
        except OSError as error:
            raise VideoError("open", f"not a readable video: {error.strerror or error}") from error
        container, stream = stack.enter_context(_container_of(file))
        yield VideoFile(file, container, stream, end)


@contextmanager
def opened_again(video: VideoFile) -> Iterator[VideoFile]:
    """Open the same file from its beginning while it stays open where it is; a remote one is not fetched again."""
    with _container_of(video.file) as (container, stream):
        yield VideoFile(video.file, container, stream, video.end)


@contextmanager
def _container_of(file: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    """FFmpeg's container of a file and its video stream."""
    with ExitStack() as stack:
        try:
            # Old files have metadata in other encodings than UTF-8.
            container = av.open(_View(file), container_options=_OPENS_NOTHING, metadata_errors="replace")
            stack.enter_context(container)
        except av.error.InvalidDataError as error:
            raise VideoError("open", "not a readable video: damaged, cut short, or not a video") from error
        except av.error.ArgumentError as error:  # also if the format is not among those that are allowed
            raise VideoError(
                "open", "not a readable video: damaged, or of a kind that points to other files or servers"
            ) from error
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError("open", f"not a readable video: {error.strerror or error}") from error
        kind = container.format.name
        if kind in _NOT_VIDEO:
            raise VideoError("open", f"not a video: FFmpeg reads it as {kind!r}")
        if kind.endswith(_IMAGES):
            raise VideoError("open", _ONLY_A_PICTURE if _is_single(container) else _ONLY_PICTURES)
        yield container, _video_stream(container)


class _View:
    """A file with a position of its own: several views of one file are read in turn."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._position = file, 0
        self.name = getattr(file, "name", "")  # its suffix tells FFmpeg apart some raw streams

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._position)
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self._position = self._file.seek(offset, whence)
        else:
            self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position


def _is_single(container: Any) -> bool:
    """Whether an image format holds no more than one image; streams of Motion JPEG begin as a JPEG file does."""
    if not container.streams.video:
        return True
    try:
        return sum(packet.size > 0 for packet in islice(container.demux(video=0), 2)) < 2
    except (av.error.FFmpegError, OSError):
        return True


def _opened(source: Source) -> IO[bytes]:
    """The open file. FFmpeg does not see its name as a path: it would take `concat:a|b` for a protocol."""
    return source() if callable(source) else open(source, "rb", buffering=0)


def _check_beginning(file: IO[bytes]) -> None:
    """Raise a VideoError for an empty file, and for those that FFmpeg does not read since they point to other files."""
    beginning = file.read(_BEGINNING_BYTES)
    file.seek(0)
    if not beginning:
        raise VideoError("open", "not a readable video: the file is empty")
    for known, kind in _BEGINNINGS.items():
        if beginning.startswith(known):
            raise VideoError("open", f"not a video: {kind}, which may point to other files or servers")


def _video_stream(container: Any) -> Any:
    best = container.streams.best("video")
    if best is None:
        raise VideoError("open", f"contains no video stream (format {container.format.name})")
    videos = [stream for stream in container.streams.video if not _is_picture(stream)]
    if not videos:
        raise VideoError("open", _ONLY_A_PICTURE)
    stream = best if any(best is video for video in videos) else videos[0]
    if stream.codec_context is None:
        raise VideoError("open", "FFmpeg has no decoder for its video stream")
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    # One thread per decoder: many decoders run at once, and frame threading was seen to deadlock on corrupt files.
    stream.thread_type = "NONE"
    return stream


def _is_picture(stream: Any) -> bool:
    """Whether a stream is a still picture: a cover, an item of a photo (HEIC, AVIF), or a GIF that is not animated.

    A video of a single frame states a length, even if it is 0, and stays a video.
    """
    is_item = stream.frames == 1 and (stream.duration is None or stream.container.format.name == "gif")
    return is_item or bool(stream.disposition & Disposition.attached_pic)
