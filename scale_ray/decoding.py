"""The plan's pixels, read sparsely with PyAV.

A file is opened once and read forward once, up to the last frame that a clip needs; only those frames
are converted to RGB, and conversion, resizing and cropping are one step of one reused converter.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from scale_ray.clips import Clip, VideoGeometry, plan_clips
from scale_ray.config import Sampling
from scale_ray.errors import VideoError

# A local path, or what opens the file anew from its beginning.
Source = str | Callable[[], IO[bytes]]

# What FFmpeg opens readily although nobody would call it a video: text as terminal art, single pictures.
_NOT_VIDEO = {"tty", "image2", "ico", "lrc", "srt", "webvtt", "ass"}
# Stamps carry rounding errors; a wanted time this close before a frame means that frame.
_SAME_TIME_S = 1e-4


@dataclass(frozen=True)
class DecodedClips:
    """The clips of one video.

    `pixels`: uint8 (clips, frames, side, side, 3), RGB. `positions`: float32 (clips, 7), the fields of
    `clips.POSITION_FIELDS`: flip as 1 or -1, the box in pixels of the shown frame, the times in seconds
    of the first and last frame used.
    """

    pixels: np.ndarray
    positions: np.ndarray
    geometry: VideoGeometry


class _StampsOutOfOrder(Exception):
    pass


def decode_clips(source: Source, video_id: str, mode: str, sampling: Sampling, side_px: int) -> DecodedClips:
    """Decode the planned clips of one video, each resized to `side_px` x `side_px`.

    Frames are chosen by time stamp: the last one shown at or before the planned time. Where the stamps
    do not rise in the order in which the decoder gives the frames, that order and the average frame
    rate count instead.

    Raises
    ------
    VideoError
        Stage `open` where there is no video to read, stage `decode` where it cannot be read to the
        last frame that is needed.
    """
    try:
        try:
            return _decode(source, video_id, mode, sampling, side_px, by_stamp=True)
        except _StampsOutOfOrder:
            return _decode(source, video_id, mode, sampling, side_px, by_stamp=False)
    except av.error.FFmpegError as error:
        raise VideoError("decode", f"damaged: {error.strerror or error}") from error


def _decode(
    source: Source,
    video_id: str,
    mode: str,
    sampling: Sampling,
    side_px: int,
    *,
    by_stamp: bool,
) -> DecodedClips:
    with _open(source) as container:
        stream = container.streams.video[0]
        # One thread a decoder: the stream runs many decoders at once, and frame threading was seen to
        # dead-lock on corrupt files.
        stream.thread_type = "NONE"
        frames = _frames(container, stream, by_stamp=by_stamp)
        first = next(frames, None)
        if first is None:
            raise VideoError("decode", "no frame could be decoded")
        geometry = _geometry(source, stream, first[1])
        clips = plan_clips(video_id, mode, geometry, sampling)
        wanted = sorted((time, c, t) for c, clip in enumerate(clips) for t, time in enumerate(clip.times_s))
        pixels = np.empty((len(clips), sampling.frames, side_px, side_px, 3), np.uint8)
        used_s = np.zeros((len(clips), sampling.frames))
        cutter = _Cutter(side_px)
        served = 0
        last_s = first[0]
        for (time_s, frame), until_s in _with_next_time(itertools.chain([first], frames)):
            last_s = time_s
            cutter.next_frame(frame)
            while served < len(wanted) and wanted[served][0] < until_s - _SAME_TIME_S:
                _, c, t = wanted[served]
                pixels[c, t] = cutter.cut(clips[c])
                used_s[c, t] = time_s
                served += 1
            if served == len(wanted):
                break
    _refuse_truncated(last_s, geometry, min(wanted[-1][0], geometry.duration_s))
    positions = np.array(
        [(1.0 if clip.flipped else -1.0, *clip.box_px, used_s[c, 0], used_s[c, -1]) for c, clip in enumerate(clips)],
        np.float32,
    )
    return DecodedClips(pixels, positions, geometry)


@contextmanager
def _open(source: Source) -> Iterator[Any]:
    with ExitStack() as opened:
        try:
            file = source if isinstance(source, str) else opened.enter_context(source())
            container = opened.enter_context(av.open(file))
        except av.error.InvalidDataError as error:
            empty = isinstance(source, str) and os.path.getsize(source) == 0
            reason = "the file is empty" if empty else "damaged, cut short, or no video at all"
            raise VideoError("open", f"not a readable video: {reason}") from error
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError("open", f"not a readable video: {error.strerror or error}") from error
        kind = container.format.name
        if kind in _NOT_VIDEO or kind.endswith("_pipe"):
            raise VideoError("open", f"not a video: FFmpeg reads it as {kind!r}")
        if not container.streams.video:
            raise VideoError("open", f"holds no video stream (format {kind})")
        yield container


def _frames(container: Any, stream: Any, *, by_stamp: bool) -> Iterator[tuple[float, VideoFrame]]:
    """The decoder's frames with their times in seconds since the first one."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    origin_s: float | None = None
    previous_s = 0.0
    for number, frame in enumerate(container.decode(stream)):
        if not by_stamp:
            if rate <= 0:
                raise VideoError("decode", "neither usable time stamps nor a frame rate")
            yield number / rate, frame
            continue
        if frame.time is None:
            raise _StampsOutOfOrder
        origin_s = frame.time if origin_s is None else origin_s
        time_s = frame.time - origin_s
        if time_s < previous_s:
            raise _StampsOutOfOrder
        previous_s = time_s
        yield time_s, frame


def _with_next_time(
    frames: Iterator[tuple[float, VideoFrame]],
) -> Iterator[tuple[tuple[float, VideoFrame], float]]:
    """Each frame with the time at which the next one replaces it; the last one is never replaced."""
    held = next(frames)
    for following in frames:
        yield held, following[0]
        held = following
    yield held, float("inf")


def _geometry(source: Source, stream: Any, frame: VideoFrame) -> VideoGeometry:
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    height, width = frame.height, frame.width
    if _quarter_turns(frame) % 2:
        height, width = width, height
    return VideoGeometry(height, width, _duration_s(source, stream, rate), rate)


def _duration_s(source: Source, stream: Any, rate: float) -> float:
    """Length of the video stream; the container's own length may be that of a longer sound track."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if stream.frames and rate > 0:
        return stream.frames / rate
    return _measured_duration_s(source, stream.index)


def _measured_duration_s(source: Source, stream_index: int) -> float:
    """Length by the packets' own stamps, for containers that do not say it: read, not decoded."""
    with _open(source) as container:
        stream = container.streams[stream_index]
        starts, ends = [], []
        for packet in container.demux(stream):
            if packet.pts is not None:
                starts.append(packet.pts)
                ends.append(packet.pts + (packet.duration or 0))
        if not starts:
            return 0.0
        return float((max(ends) - min(starts)) * stream.time_base)


def _refuse_truncated(last_s: float, geometry: VideoGeometry, needed_s: float) -> None:
    """A header that promises clearly more than the file holds means a file cut short."""
    # Headers exceed the truth by a frame or two in good files; a quarter second or 5 % is no rounding.
    if needed_s - last_s > max(0.25, 0.05 * geometry.duration_s, 3 / max(geometry.fps, 1)):
        raise VideoError("decode", f"cut short: {geometry.duration_s:.2f} s promised, frames end at {last_s:.2f} s")


def _quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns, counter-clockwise, that the display matrix asks for."""
    return round(frame.rotation / 90) % 4


class _Cutter:
    """Cuts boxes out of one frame at a time; a frame is converted once for each size it is needed in."""

    def __init__(self, side_px: int) -> None:
        self._side = side_px
        self._converter = VideoReformatter()
        self._frame: VideoFrame | None = None
        self._resized: dict[tuple[int, int], np.ndarray] = {}

    def next_frame(self, frame: VideoFrame) -> None:
        self._frame = frame
        self._resized.clear()

    def cut(self, clip: Clip) -> np.ndarray:
        frame = self._frame
        assert frame is not None
        turns = _quarter_turns(frame)
        shown_h, shown_w = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        y0, x0, y1, x1 = clip.box_px
        scale_y, scale_x = self._side / (y1 - y0), self._side / (x1 - x0)
        height = max(round(shown_h * scale_y), self._side)
        width = max(round(shown_w * scale_x), self._side)
        image = self._resized.get((height, width))
        if image is None:
            image = self._resized[height, width] = self._convert(frame, turns, height, width)
        top = min(round(y0 * scale_y), height - self._side)
        left = min(round(x0 * scale_x), width - self._side)
        cut = image[top : top + self._side, left : left + self._side]
        return cut[:, ::-1] if clip.flipped else cut

    def _convert(self, frame: VideoFrame, turns: int, height: int, width: int) -> np.ndarray:
        if turns % 2:
            height, width = width, height
        rgb = self._converter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
        )
        return np.rot90(rgb.to_ndarray(), turns) if turns else rgb.to_ndarray()
