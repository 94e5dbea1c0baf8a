"""Reads the frames of a video by time: the file is opened once and read forward; seeks skip unused parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import av
import av.error
from av.format import formats_available
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame

from scale_ray.clips import VideoGeometry
from scale_ray.decoding.orientation import orientation_of
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
# Enough for all of the above and for the flags of a WebP file, of which one marks an animation.
_BEGINNING_BYTES = 21
_WEBP_ANIMATED = 2
# Stamps are rounded, in Matroska to milliseconds; a wanted time this close before a frame selects that frame.
_SAME_TIME_S = 6e-4
# A seek costs about as much as decoding this many frames; fewer frames are decoded and discarded.
_SEEK_COST_FRAMES = 16
# Minimum distance of a seek if the container has no index of its key frames.
_BLIND_SEEK_S = 12.0
# Steps back from the target, tried in turn while a seek lands after it.
_SEEK_BACK_S = (0.0, 1.0, 3.0, 10.0)
# MPEG program streams: after a seek, their stamps are estimates that are off by some frames.
_NEVER_SEEK = {"mpeg"}
# Pixels more elongated than this are an error of the header; those of real videos are up to about 2.4.
_PIXEL_ASPECT_MAX = 10


class ReadAgain(Exception):
    """Raised if a file cannot be read reliably in the current way; `by_stamp` is the setting for the next attempt."""

    def __init__(self, *, by_stamp: bool) -> None:
        super().__init__(by_stamp)
        self.by_stamp = by_stamp


@contextmanager
def open_video(source: Source) -> Iterator[Any]:
    """Open a video file and yield its container.

    Raises
    ------
    VideoError
        Stage `open` if the source is not a readable video.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_opened(source))
            _check_beginning(file)
            # Old files have metadata in other encodings than UTF-8.
            container = av.open(file, container_options=_OPENS_NOTHING, metadata_errors="replace")
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
            raise VideoError("open", _ONLY_A_PICTURE)
        yield container


def _opened(source: Source) -> IO[bytes]:
    """The open file. FFmpeg does not see its name as a path: it would take `concat:a|b` for a protocol."""
    return source() if callable(source) else open(source, "rb", buffering=0)


def _check_beginning(file: IO[bytes]) -> None:
    """Raise a VideoError for an empty file, and for those that FFmpeg does not read, or not to the end.

    They point to other files or, as an animated WebP, would be taken for a damaged picture.
    """
    beginning = file.read(_BEGINNING_BYTES)
    file.seek(0)
    if not beginning:
        raise VideoError("open", "not a readable video: the file is empty")
    for known, kind in _BEGINNINGS.items():
        if beginning.startswith(known):
            raise VideoError("open", f"not a video: {kind}, which may point to other files or servers")
    if len(beginning) == _BEGINNING_BYTES and beginning[8:16] == b"WEBPVP8X" and beginning[20] & _WEBP_ANIMATED:
        raise VideoError("open", "not supported: an animated WebP, which FFmpeg does not decode")


def video_stream(container: Any) -> Any:
    """The video stream of a container, set up for decoding; a cover or another still picture does not count.

    Raises
    ------
    VideoError
        Stage `open` if there is none.
    """
    best = container.streams.best("video")
    if best is None:
        raise VideoError("open", f"contains no video stream (format {container.format.name})")
    videos = [stream for stream in container.streams.video if not _is_picture(stream)]
    if not videos:
        raise VideoError("open", _ONLY_A_PICTURE)
    stream = best if any(best is video for video in videos) else videos[0]
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


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, in the order of the file.

    Raises
    ------
    VideoError
        Stage `open` if one is encrypted.
    """
    for packet in container.demux(stream):
        if packet.has_sidedata("encryption_info"):
            raise VideoError("open", "encrypted: its frames cannot be decoded without the key")
        yield packet


class FrameReader:
    """Returns the frame shown at each of a series of increasing times, in seconds since the first frame.

    With `by_stamp`, the frame shown is the last one whose time stamp is not later. Otherwise frames are numbered in the
    decoder's output order and timed by the average frame rate. With `may_seek`, frames before the key frame of a wanted
    time are not decoded; the frames returned are the same as when reading from the start.

    Raises
    ------
    ReadAgain
        If stamps are missing or not in the decoder's output order, or a seek did not land where it should.
    VideoError
        If nothing can be decoded.
    """

    def __init__(self, container: Any, stream: Any, *, by_stamp: bool, may_seek: bool) -> None:
        self._container, self.stream = container, stream
        self._by_stamp = by_stamp
        self._may_seek = by_stamp and may_seek and container.format.name not in _NEVER_SEEK
        self._rate = frame_rate(stream)
        self._origin_s: float | None = None
        self.has_sought = False
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            raise VideoError("decode", "no frame could be decoded")
        self._shown: tuple[float, VideoFrame] = first
        self._following = next(self._frames, None)

    @property
    def shown(self) -> tuple[float, VideoFrame]:
        """The latest frame returned, with its time; initially the first frame."""
        return self._shown

    def frame_at(self, time_s: float) -> tuple[float, VideoFrame]:
        """The frame shown at a time, with its own time; the last frame for all times after the end."""
        while self._following is not None and self._following[0] <= time_s + _SAME_TIME_S:
            if self._may_seek and self._seek_pays(self._following[0], time_s):
                self._seek(time_s)
            else:
                self._shown, self._following = self._following, next(self._frames, None)
        return self._shown

    def _decoded(self) -> Iterator[tuple[float, VideoFrame]]:
        previous_s: float | None = None
        packets = packets_of(self._container, self.stream)
        frames: Iterator[VideoFrame] = (frame for packet in packets for frame in packet.decode())
        if self.has_sought:
            # Frames before the first key frame lack the frames that they refer to.
            frames = itertools.dropwhile(lambda frame: not frame.key_frame, frames)
        for number, frame in enumerate(frames):
            if not self._by_stamp:
                if self._rate <= 0:
                    raise VideoError("decode", "neither usable time stamps nor a frame rate")
                yield number / self._rate, frame
                continue
            if frame.time is None:
                raise ReadAgain(by_stamp=False)
            if self._origin_s is None:
                self._origin_s = frame.time
            time_s = frame.time - self._origin_s
            if previous_s is not None and time_s < previous_s:
                raise ReadAgain(by_stamp=False)
            previous_s = time_s
            yield time_s, frame

    def _seek_pays(self, reached_s: float, time_s: float) -> bool:
        if time_s - reached_s < _SEEK_COST_FRAMES / max(self._rate, 1.0):
            return False
        entries, unit_s = self.stream.index_entries, float(self.stream.time_base)
        # Index entries are decoding times; the first entry stands for the time of the first frame.
        base = entries[0].timestamp if len(entries) else 0
        # In some containers the index is built while reading and ends at the current position.
        if len(entries) < 2 or (entries[len(entries) - 1].timestamp - base) * unit_s <= reached_s:
            return time_s - reached_s > _BLIND_SEEK_S
        before = entries.search_timestamp(base + int(time_s / unit_s), backward=True)
        if before < 0:
            return False
        key_s = (entries[before].timestamp - base) * unit_s
        return (key_s - reached_s) * self._rate >= _SEEK_COST_FRAMES

    def _seek(self, time_s: float) -> None:
        """Seek to the key frame before a time; further back if the seek lands after that time."""
        assert self._origin_s is not None
        assert self._following is not None
        reached_s = self._following[0]
        self.has_sought = True
        for back_s in _SEEK_BACK_S:
            target_s = max(time_s - back_s, 0.0) + self._origin_s
            try:
                self._container.seek(int(target_s / self.stream.time_base), stream=self.stream, backward=True)
            except (av.error.FFmpegError, OSError) as error:
                raise ReadAgain(by_stamp=True) from error
            self._frames = self._decoded()
            landed = next(self._frames, None)
            if landed is not None and landed[0] <= time_s + _SAME_TIME_S:
                self._shown, self._following = landed, next(self._frames, None)
                # A seek that lands earlier causes frames to be decoded twice: do not seek again in this file.
                self._may_seek = landed[0] > reached_s
                return
        raise ReadAgain(by_stamp=True)


def frame_rate(stream: Any) -> float:
    """Average frame rate in frames per second; 0 if unknown."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def display_size(stream: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width of a frame with square pixels, before it is turned: the width times the pixel aspect.

    As in players, the aspect that the container states comes before that of the coded stream.
    """
    aspect = stream.sample_aspect_ratio or 1
    if not 1 / _PIXEL_ASPECT_MAX <= aspect <= _PIXEL_ASPECT_MAX:
        aspect = 1
    return height, max(round(width * aspect), 1)


def geometry_of(source: Source, stream: Any, first: VideoFrame) -> VideoGeometry:
    """The size as shown, the length of the video stream and the frame rate of a video."""
    height, width = orientation_of(first).shown_size(*display_size(stream, first.height, first.width))
    return VideoGeometry(height, width, duration_s(source, stream), frame_rate(stream))


def duration_s(source: Source, stream: Any) -> float:
    """Length of the video stream in seconds; the container's length may be that of a longer audio track."""
    header_s = header_duration_s(stream)
    return _measured_duration_s(source, stream.index) if header_s is None else header_s


def header_duration_s(stream: Any) -> float | None:
    """Length of the video stream in seconds according to its header; None if the header does not state it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if stream.frames and frame_rate(stream) > 0:
        return stream.frames / frame_rate(stream)
    return None


def _measured_duration_s(source: Source, stream_index: int) -> float:
    """Length in seconds by the packets' stamps, read but not decoded, for headers that do not state it."""
    with open_video(source) as container:
        stream = container.streams[stream_index]
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        first = next((packet.pts for packet in container.demux(stream) if packet.pts is not None), None)
        if first is None:
            return 0.0
        length_s = container.duration / av.time_base if container.duration else None
        if length_s is not None and length_s > 2 * _BLIND_SEEK_S:
            # In a long video, reading the end is enough.
            try:
                container.seek(int((length_s - _BLIND_SEEK_S) / stream.time_base), stream=stream, backward=True)
            except (av.error.FFmpegError, OSError):
                return length_s
        ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
        return float((max(ends, default=first) - first) * stream.time_base)
