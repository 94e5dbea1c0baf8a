"""Reads the frames of a video by time: the file is opened once and read forward; seeks skip unused parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import av.error
from av.video.frame import VideoFrame

from scale_ray.clips import VideoGeometry
from scale_ray.decoding.orientation import orientation_of
from scale_ray.decoding.timing import PacketStamps, Timing, packets_of, stamps_in_order
from scale_ray.decoding.video_file import VideoFile
from scale_ray.errors import VideoError

# Stamps are rounded, in Matroska and ASF to milliseconds; a wanted time this close before a frame selects that frame,
# but never one that is more than half a frame away.
_SAME_TIME_S = 1.1e-3
# A seek costs about as much as decoding this many frames; fewer frames are decoded and discarded.
_SEEK_COST_FRAMES = 16
# Minimum distance of a seek if the container has no index of its key frames.
_BLIND_SEEK_S = 12.0
# Steps back from the target, tried in turn while a seek lands after it.
_SEEK_BACK_S = (0.0, 1.0, 3.0, 10.0)
# Pixels more elongated than this are an error of the header; those of real videos are up to about 2.4.
_PIXEL_ASPECT_MAX = 10


class ReadAgain(Exception):
    """Raised if a file cannot be read reliably in the current way; `by_stamp` is the setting for the next attempt."""

    def __init__(self, *, by_stamp: bool) -> None:
        super().__init__(by_stamp)
        self.by_stamp = by_stamp


class FrameReader:
    """Returns the frame shown at each of a series of increasing times, in seconds since the first frame.

    With `by_stamp`, the frame shown is the last one whose time stamp is not later. Otherwise the presentation stamps
    are not those of the frames: the frames, in the decoder's output order, are shown at the times at which the packets
    are decoded, or at the frame rate where those are missing. With `may_seek`, frames before the key frame of a wanted
    time are not decoded; the frames returned are the same as when reading from the start.

    Raises
    ------
    ReadAgain
        If stamps are missing or not in the decoder's output order, or a seek did not land where it should.
    VideoError
        If nothing can be decoded.
    """

    def __init__(self, video: VideoFile, timing: Timing, *, by_stamp: bool, may_seek: bool) -> None:
        self.video, self.timing = video, timing
        self.same_time_s = min(_SAME_TIME_S, 0.5 / max(timing.fps, 1.0))
        self._unit_s = float(video.stream.time_base or 0)
        self._by_stamp = by_stamp and timing.has_stamps
        self._may_seek = self._by_stamp and may_seek and timing.may_seek
        self._origin_s: float | None = None
        self._first_stamp: int | None = None
        self._end_stamp: int | None = None
        self.has_sought = False
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            raise VideoError("decode", "no frame could be decoded")
        # Packets before the first frame that can be decoded, where a stream was cut between key frames.
        self._lost_s = max((self._origin_s or 0.0) - (self._first_stamp or 0) * self._unit_s, 0.0)
        self._shown: tuple[float, VideoFrame] = first
        self._following = next(self._frames, None)

    @property
    def shown(self) -> tuple[float, VideoFrame]:
        """The latest frame returned, with its time; initially the first frame."""
        return self._shown

    @property
    def length_s(self) -> float:
        """Length in seconds from the first frame to the end of the last one, as the container states it."""
        return max(self.timing.length_s - self._lost_s, 0.0) if self._by_stamp else self.timing.length_s

    @property
    def frames_end_s(self) -> float | None:
        """When the last frame ends, in seconds since the first frame; None while there are frames to follow.

        A frame may stand for long, which its packet states.
        """
        if self._following is not None:
            return None
        time_s, frame = self._shown
        return time_s + max((frame.duration or 0) * self._unit_s, 1 / max(self.timing.fps, 1.0))

    @property
    def packets_end_s(self) -> float:
        """When the last of the packets read so far ends, decoded or not, in seconds since the first frame."""
        if self._end_stamp is None:
            return self.length_s
        return self._end_stamp * self._unit_s - (self._origin_s or 0.0)

    def frame_at(self, time_s: float) -> tuple[float, VideoFrame]:
        """The frame shown at a time, with its own time; the last frame for all times after the end."""
        while self._following is not None and self._following[0] <= time_s + self.same_time_s:
            if self._may_seek and self._seek_pays(self._following[0], time_s):
                self._seek(time_s)
            else:
                self._shown, self._following = self._following, next(self._frames, None)
        return self._shown

    def _decoded(self) -> Iterator[tuple[float, VideoFrame]]:
        frames = self._decoded_packets()
        if self.has_sought:
            # Frames before the first key frame lack the frames that they refer to.
            frames = itertools.dropwhile(lambda frame: not frame.key_frame, frames)
        return self._timed_by_stamp(frames) if self._by_stamp else self._timed_in_order(frames)

    def _decoded_packets(self) -> Iterator[VideoFrame]:
        for packet in packets_of(self.video):
            if self._by_stamp and packet.pts is not None and not packet.is_discard:
                if self._origin_s is None:
                    self._first_stamp = min(packet.pts, packet.pts if self._first_stamp is None else self._first_stamp)
                end = packet.pts + (packet.duration or 0)
                self._end_stamp = max(end, end if self._end_stamp is None else self._end_stamp)
            yield from packet.decode()

    def _timed_by_stamp(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[float, VideoFrame]]:
        previous_s: float | None = None
        for frame in frames:
            if frame.time is None:
                raise ReadAgain(by_stamp=False)
            if self._origin_s is None:
                self._origin_s = frame.time
            time_s = frame.time - self._origin_s
            if previous_s is not None and time_s < previous_s:
                raise ReadAgain(by_stamp=False)
            previous_s = time_s
            yield time_s, frame

    def _timed_in_order(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[float, VideoFrame]]:
        """Frames in the order of the output, timed by decoding stamps, or by the frame rate where those are missing.

        A frame is shown at the decoding stamp of the packet with which it leaves the decoder. Some files store decoding
        stamps as presentation stamps, without others: then frame n has the stamp of packet n.
        """
        if self.timing.fps <= 0:
            raise VideoError("decode", "neither usable time stamps nor a frame rate")
        stamps = stamps_in_order(self.video) if self.timing.has_stamps else PacketStamps()
        first_s, time_s = None, -1 / self.timing.fps
        for number, frame in enumerate(frames):
            next_s = time_s + 1 / self.timing.fps
            stamp = frame.dts if stamps.are_for_decoding else stamps.stored_of(number)
            if stamp is not None:
                first_s = stamp * self._unit_s - next_s if first_s is None else first_s
                next_s = max(stamp * self._unit_s - first_s, time_s)
            time_s = next_s
            yield time_s, frame

    def _seek_pays(self, reached_s: float, time_s: float) -> bool:
        stream, rate = self.video.stream, self.timing.fps
        if time_s - reached_s < _SEEK_COST_FRAMES / max(rate, 1.0):
            return False
        entries, unit_s = stream.index_entries, float(stream.time_base)
        # Index entries are decoding times; the first entry stands for the time of the first frame.
        base = entries[0].timestamp if len(entries) else 0
        # In some containers the index is built while reading and ends at the current position.
        if len(entries) < 2 or (entries[len(entries) - 1].timestamp - base) * unit_s <= reached_s:
            return time_s - reached_s > _BLIND_SEEK_S
        before = entries.search_timestamp(base + int(time_s / unit_s), backward=True)
        if before < 0:
            return False
        key_s = (entries[before].timestamp - base) * unit_s
        return (key_s - reached_s) * rate >= _SEEK_COST_FRAMES

    def _seek(self, time_s: float) -> None:
        """Seek to the key frame before a time; further back if the seek lands after that time."""
        assert self._origin_s is not None
        assert self._following is not None
        reached_s = self._following[0]
        self.has_sought = True
        stream = self.video.stream
        for back_s in _SEEK_BACK_S:
            target_s = max(time_s - back_s, 0.0) + self._origin_s
            try:
                self.video.container.seek(int(target_s / stream.time_base), stream=stream, backward=True)
            except (av.error.FFmpegError, OSError) as error:
                raise ReadAgain(by_stamp=True) from error
            self._frames = self._decoded()
            landed = next(self._frames, None)
            if landed is not None and landed[0] <= time_s + self.same_time_s:
                self._shown, self._following = landed, next(self._frames, None)
                # A seek that lands earlier causes frames to be decoded twice: do not seek again in this file.
                self._may_seek = landed[0] > reached_s
                return
        raise ReadAgain(by_stamp=True)


def display_size(stream: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width of a frame with square pixels, before it is turned: the width times the pixel aspect.

    As in players, the aspect that the container states comes before that of the coded stream.
    """
    aspect = stream.sample_aspect_ratio or 1
    if not 1 / _PIXEL_ASPECT_MAX <= aspect <= _PIXEL_ASPECT_MAX:
        aspect = 1
    return height, max(round(width * aspect), 1)


def geometry_of(reader: FrameReader) -> VideoGeometry:
    """The size as shown, the length and the frame rate of a video of which the first frame was read."""
    first = reader.shown[1]
    size = display_size(reader.video.stream, first.height, first.width)
    height, width = orientation_of(first).shown_size(*size)
    return VideoGeometry(height, width, reader.length_s, reader.timing.fps)
