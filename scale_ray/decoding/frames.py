"""A video's frames by time: a file opened once, read forward, seeking over what nobody wants."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import av
import av.error
from av.stream import Discard
from av.video.frame import VideoFrame

from scale_ray.clips import VideoGeometry
from scale_ray.errors import VideoError

# A local path, or what opens the file anew from its beginning.
Source = str | Callable[[], IO[bytes]]

# What FFmpeg opens readily although nobody would call it a video: text as terminal art, single pictures.
_NOT_VIDEO = {"tty", "image2", "ico", "lrc", "srt", "webvtt", "ass"}
# Stamps are rounded, in Matroska to milliseconds; a wanted time this close before a frame means that frame.
_SAME_TIME_S = 6e-4
# A seek costs about as much as decoding so many frames: fewer are decoded and thrown away.
_SEEK_COST_FRAMES = 16
# How far a seek must lead where the container does not say where its key frames are.
_BLIND_SEEK_S = 12.0
# How much further back a seek is tried that led behind its target.
_SEEK_BACK_S = (0.0, 1.0, 3.0, 10.0)
# MPEG program streams: their stamps after a seek are guesses, some frames off.
_NEVER_SEEK = {"mpeg"}


class ReadAgain(Exception):
    """This way of reading cannot be trusted with this file; `by_stamp` says how to read it again."""

    def __init__(self, *, by_stamp: bool) -> None:
        super().__init__(by_stamp)
        self.by_stamp = by_stamp


@contextmanager
def opened(source: Source) -> Iterator[Any]:
    """The container of a video file; a VideoError of stage `open` where there is none."""
    with ExitStack() as stack:
        try:
            file = source if isinstance(source, str) else stack.enter_context(source())
            container = stack.enter_context(av.open(file))
        except av.error.InvalidDataError as error:
            empty = isinstance(source, str) and os.path.getsize(source) == 0
            reason = "the file is empty" if empty else "damaged, cut short, or no video at all"
            raise VideoError("open", f"not a readable video: {reason}") from error
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError("open", f"not a readable video: {error.strerror or error}") from error
        kind = container.format.name
        if kind in _NOT_VIDEO or kind.endswith("_pipe"):
            raise VideoError("open", f"not a video: FFmpeg reads it as {kind!r}")
        yield container


def video_stream(container: Any) -> Any:
    """The container's video; a cover picture beside it is none."""
    stream = container.streams.best("video")
    if stream is None:
        raise VideoError("open", f"holds no video stream (format {container.format.name})")
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    # One thread a decoder: the stream runs many decoders at once, and frame threading was seen to
    # dead-lock on corrupt files.
    stream.thread_type = "NONE"
    return stream


class FrameReader:
    """Gives the frame shown at each of rising times, in seconds since the video's first frame.

    With `by_stamp` the frame shown is the last one whose time stamp is not later. Otherwise the order in
    which the decoder gives the frames and the average rate count. With `may_seek`, what lies before the key
    frame of a wanted time is not decoded; the frames are those of a reading from the start.

    Raises
    ------
    ReadAgain
        Where stamps are missing or not in the decoder's order, or a seek did not lead where it should.
    VideoError
        Where nothing can be decoded.
    """

    def __init__(self, container: Any, stream: Any, *, by_stamp: bool, may_seek: bool) -> None:
        self._container, self.stream = container, stream
        self._by_stamp = by_stamp
        self._may_seek = by_stamp and may_seek and container.format.name not in _NEVER_SEEK
        self._rate = rate_of(stream)
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
        """The newest frame that was asked for; the first one at the beginning."""
        return self._shown

    def at(self, time_s: float) -> tuple[float, VideoFrame]:
        """The frame shown at a time, with its own time; the last one for all times behind the end."""
        while self._following is not None and self._following[0] <= time_s + _SAME_TIME_S:
            if self._may_seek and self._seek_pays(self._following[0], time_s):
                self._seek(time_s)
            else:
                self._shown, self._following = self._following, next(self._frames, None)
        return self._shown

    def _decoded(self) -> Iterator[tuple[float, VideoFrame]]:
        previous_s: float | None = None
        frames = self._container.decode(self.stream)
        if self.has_sought:
            # What a decoder gives before the first key frame lacks what it refers to.
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
        # An index counts decoding times; the first entry's stands for the first frame's.
        base = entries[0].timestamp if len(entries) else 0
        # Some containers' index is written down while it is read, and ends here.
        if len(entries) < 2 or (entries[len(entries) - 1].timestamp - base) * unit_s <= reached_s:
            return time_s - reached_s > _BLIND_SEEK_S
        before = entries.search_timestamp(base + int(time_s / unit_s), backward=True)
        if before < 0:
            return False
        key_s = (entries[before].timestamp - base) * unit_s
        return (key_s - reached_s) * self._rate >= _SEEK_COST_FRAMES

    def _seek(self, time_s: float) -> None:
        """Go to the key frame before a time; further back where the container leads behind it."""
        assert self._origin_s is not None
        assert self._following is not None
        left_s = self._following[0]
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
                # Where a seek leads back, what lies between is decoded twice: not again in this file.
                self._may_seek = landed[0] > left_s
                return
        raise ReadAgain(by_stamp=True)


def rate_of(stream: Any) -> float:
    """Average frames a second; 0 where unknown."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def geometry_of(source: Source, stream: Any, first: VideoFrame) -> VideoGeometry:
    """Size as shown, length of the video stream and frame rate."""
    height, width = first.height, first.width
    if quarter_turns(first) % 2:
        height, width = width, height
    return VideoGeometry(height, width, duration_s(source, stream), rate_of(stream))


def duration_s(source: Source, stream: Any) -> float:
    """Length of the video stream; the container's own length may be that of a longer sound track."""
    told_s = told_duration_s(stream)
    return _measured_duration_s(source, stream.index) if told_s is None else told_s


def told_duration_s(stream: Any) -> float | None:
    """Length of the video stream by its header alone; None where that does not tell."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if stream.frames and rate_of(stream) > 0:
        return stream.frames / rate_of(stream)
    return None


def _measured_duration_s(source: Source, stream_index: int) -> float:
    """Length by the packets' own stamps, for containers that do not say it: read, not decoded."""
    with opened(source) as container:
        stream = container.streams[stream_index]
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        first = next((packet.pts for packet in container.demux(stream) if packet.pts is not None), None)
        if first is None:
            return 0.0
        length_s = container.duration / av.time_base if container.duration else None
        if length_s is not None and length_s > 2 * _BLIND_SEEK_S:
            # A long one: its end is enough.
            try:
                container.seek(int((length_s - _BLIND_SEEK_S) / stream.time_base), stream=stream, backward=True)
            except (av.error.FFmpegError, OSError):
                return length_s
        ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
        return float((max(ends, default=first) - first) * stream.time_base)


def quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns, counter-clockwise, that the display matrix asks for."""
    return round(frame.rotation / 90) % 4
