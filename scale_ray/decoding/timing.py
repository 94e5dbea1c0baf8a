"""When the frames of a video stream are shown: whether its stamps can be used, its frame rate and its length.

Headers are believed only in containers that hold an index or state the length of what they hold. Any other stream is
read through once, without decoding: raw streams have no stamps, and parts that were joined begin their stamps again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import av
import av.error
from av.stream import Discard

from scale_ray.decoding.video_file import VideoFile, opened_again
from scale_ray.errors import VideoError

_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_WITH_HEADER = {_MOV, "matroska,webm", "avi", "asf", "flv", "mxf"}
# Containers whose average frame rate is that of their frames; in others, FFmpeg may have made it up.
_WITH_AVERAGE_RATE = {_MOV, "matroska,webm"}
_WITHOUT_STAMPS = {"avi", "asf"}
# Flags of FFmpeg's formats: no stamps at all, and stamps that may begin again.
_NO_STAMPS, _STAMPS_MAY_JUMP = 0x80, 0x200
# MPEG program streams: few of their frames have stamps, and what FFmpeg estimates for the others is off by half a frame
# and more, after a seek by some frames. Where all frames last equally long (a count is off by less than two), the frame
# rate is better, and so it is where most stamps are missing.
_ESTIMATED_STAMPS = {"mpeg"}
_EVEN_FRAMES, _FEW_STAMPS = 2.0, 0.9
# A step back by more than this, and in some formats a step forward by more than that, is where a second part begins.
# The same limits as in FFmpeg's command line.
_STEP_BACK_S, _STEP_FORWARD_S = 0.1, 10.0
# More packets than codecs reorder.
_REORDERED = 33
# The end of a longer file whose length is not stated is looked for in this many seconds before the container's end.
_END_S = 12.0


@dataclass(frozen=True)
class Timing:
    """The clock of a video stream.

    `length_s`: from the stamp of the first packet to the end of the last frame. `fps`: frames per second, 0 if unknown.
    Without stamps (`has_stamps`), frame n of the decoder's output is shown at `n / fps`. Where parts were joined
    (`is_joined`), the stamps of the second part are made to go on from the first. `is_believed`: whether a header
    states the length, of which the packets may fall short.
    """

    length_s: float
    fps: float
    has_stamps: bool = True
    is_joined: bool = False
    may_seek: bool = True
    is_believed: bool = False


def timing_of(video: VideoFile) -> Timing:
    """The clock of the video stream of a file that is open; the file is opened again where it must be read through.

    Raises
    ------
    VideoError
        If the file ends before the length that its header states, or if a raw stream states no frame rate.
    """
    fps = frame_rate(video.stream)
    has_header = _has_header(video)
    timing = Timing(_length_by_header_s(video), fps, is_believed=True) if has_header else _read_through(video)
    counted_s = _length_by_count_s(video.stream)
    # FFmpeg corrects the length in the headers of some files that lost their end, but not the number of frames.
    if (
        counted_s is not None
        and not timing.is_joined
        and (video.end.is_whole is False or not has_header)
        and clearly_shorter(timing.length_s, counted_s, fps)
    ):
        raise cut_short(timing.length_s, counted_s)
    _check_index(video, timing.length_s)
    return timing


def frame_rate(stream: Any) -> float:
    """Frame rate in frames per second; 0 if unknown."""
    rates = [stream.guessed_rate, stream.average_rate]
    if stream.container.format.name in _WITH_AVERAGE_RATE:
        rates.reverse()
    return float(rates[0] or rates[1] or 0)


def header_length_s(video: VideoFile) -> float | None:
    """Length in seconds of the video stream or, if its header does not state that, of the container; None if unknown.

    Nothing is read beyond the header.
    """
    if not _has_header(video):
        return None
    length_s, container_length = _stated_length_s(video.stream), video.container.duration
    return container_length / av.time_base if length_s is None and container_length else length_s


def packets_of(video: VideoFile) -> Iterator[Any]:
    """The packets of the video stream, in the order of the file; where stamps begin again, they are made to go on.

    Raises
    ------
    VideoError
        Stage `open` if one is encrypted.
    """
    return (packet for packet, _ in _joined_packets(video))


@dataclass(frozen=True)
class PacketStamps:
    """What times frames that have no presentation stamps of their own.

    `stored`: presentation stamps that are in the order of the packets, in units of the stream: they are those of
    decoding. `are_for_decoding`: otherwise, whether every packet has a later decoding stamp than the one before.
    """

    are_for_decoding: bool = False
    stored: tuple[int, ...] = ()

    def stored_of(self, packet: int) -> int | None:
        return self.stored[packet] if packet < len(self.stored) else None


def stamps_in_order(video: VideoFile) -> PacketStamps:
    """The stamps of all packets, from another reading of the file."""
    with opened_again(video) as again:
        stamps = [(packet.pts, packet.dts) for packet in packets_of(again) if packet.size and not packet.is_discard]
    if not stamps:
        return PacketStamps()
    stored, decoding = zip(*stamps, strict=True)
    # Containers without presentation stamps get some that FFmpeg estimates.
    if video.container.format.name not in _WITHOUT_STAMPS and None not in stored and list(stored) == sorted(stored):
        return PacketStamps(stored=stored)
    is_later = None not in decoding and all(before < after for before, after in pairwise(decoding))
    return PacketStamps(are_for_decoding=is_later)


def clearly_shorter(found_s: float, expected_s: float, fps: float) -> bool:
    """Whether a length is shorter than stated by more than the rounding of headers: a frame or two, 0.25 s or 5 %."""
    return expected_s - found_s > max(0.25, 0.05 * expected_s, 3 / max(fps, 1))


def cut_short(found_s: float, expected_s: float) -> VideoError:
    return VideoError("decode", f"cut short: expected {expected_s:.2f} s, found frames up to {found_s:.2f} s")


def _check_index(video: VideoFile, length_s: float) -> None:
    """Raise a VideoError if the index of an MP4 or MOV file lists packets behind the end of the file."""
    stream, entries, size = video.stream, video.stream.index_entries, video.container.size
    last = len(entries) - 1
    if video.container.format.name != _MOV or last < 0 or entries[last].pos + entries[last].size <= size:
        return
    while last and entries[last].pos + entries[last].size > size:
        last -= 1
    found_s = float((entries[last].timestamp - entries[0].timestamp) * stream.time_base)
    if clearly_shorter(found_s, length_s, frame_rate(stream)):
        raise cut_short(found_s, length_s)


def _has_header(video: VideoFile) -> bool:
    return video.container.format.name in _WITH_HEADER and not video.end.is_joined


def _stated_length_s(stream: Any) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return _length_by_count_s(stream)


def _length_by_count_s(stream: Any) -> float | None:
    rate = stream.average_rate or stream.guessed_rate
    return stream.frames / float(rate) if stream.frames and rate else None


def _length_by_header_s(video: VideoFile) -> float:
    """Length in seconds by the header, or by the last packets where the header does not state it, or not rightly."""
    length_s = _stated_length_s(video.stream)
    if length_s is None:
        return _length_by_end_s(video)
    if video.container.format.name == _MOV and video.stream.codec_context.has_b_frames:
        return max(length_s, _length_by_index_s(video))
    return length_s


def _length_by_index_s(video: VideoFile) -> float:
    """Length in seconds by the presentation stamps of the last packets of the index; 0 without an index.

    Headers add up the distances at which packets are decoded. Where frames are reordered, the last ones may be shown
    long after that, as in a recording of a screen that does not change.
    """
    with opened_again(video) as again:
        stream, entries = again.stream, again.stream.index_entries
        if not len(entries):
            return 0.0
        try:
            last = entries[max(len(entries) - _REORDERED, 0)]
            again.container.seek(last.timestamp, stream=stream, backward=True, any_frame=True)
            packets = [packet for packet in _demuxed(again.container, stream) if packet.pts is not None]
        except (av.error.FFmpegError, OSError):  # the decoder will tell
            return 0.0
        ends = [packet.pts + (packet.duration or 0) for packet in packets if not packet.is_discard]
        return float((max(ends, default=0) - (stream.start_time or 0)) * stream.time_base)


def _joined_packets(video: VideoFile) -> Iterator[tuple[Any, int]]:
    """Packets with stamps that go on, and the shift of each, in units of the stream: 0 unless parts were joined."""
    unit_s = float(video.stream.time_base or 0)
    may_jump = bool(video.container.format.flags & _STAMPS_MAY_JUMP)
    shift, next_dts, end = 0, None, None  # the last two: of the packets so far, shifted
    for packet in _demuxed(video.container, video.stream):
        if packet.has_sidedata("encryption_info"):
            raise VideoError("open", "encrypted: its frames cannot be decoded without the key")
        if packet.dts is not None and packet.size and next_dts is not None:
            step_s = (packet.dts + shift - next_dts) * unit_s
            if step_s < -_STEP_BACK_S or (may_jump and step_s > _STEP_FORWARD_S):
                shift = next_dts - packet.dts
                if packet.pts is not None and end is not None and step_s < 0:
                    shift = max(shift, end - packet.pts)  # the first frame must not overlap with those before
        if shift:
            packet.dts = None if packet.dts is None else packet.dts + shift
            packet.pts = None if packet.pts is None else packet.pts + shift
        if packet.size and packet.dts is not None:
            next_dts = packet.dts + (packet.duration or 0)
        if packet.size and packet.pts is not None:
            end = max(packet.pts + (packet.duration or 0), packet.pts if end is None else end)
        yield packet, shift


def _demuxed(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of these streams, or of all; a stream that begins late, which PyAV does not know, is skipped."""
    while True:
        try:
            yield from container.demux(*streams)
            return
        except IndexError:
            continue


def _read_through(video: VideoFile) -> Timing:
    """The timing of a stream by all of its packets, which are read, but not decoded."""
    has_stamps = not video.container.format.flags & _NO_STAMPS
    if not has_stamps and not video.stream.codec_context.framerate:
        raise VideoError("decode", "states neither time stamps nor a frame rate")
    unit_s = float(video.stream.time_base)
    num_packets, num_stamps, first, end = 0, 0, None, 0
    duration, shown, is_joined = 0, 0, False
    with opened_again(video) as again:
        for packet, shift in _joined_packets(again):
            if not packet.size and packet.pts is None:
                continue
            # What was cut off before its key frame cannot be shown.
            shown += (packet.duration or 0) if shown or packet.is_keyframe else 0
            duration += packet.duration or 0
            num_packets += 1
            is_joined |= shift != 0
            if packet.pts is not None:
                num_stamps += 1
                first = packet.pts if first is None else min(first, packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
    length = end - (first or 0)
    fps = _nearest_rate(video.stream, num_packets / (duration * unit_s) if duration else 0.0)
    is_even = fps > 0 and abs(num_packets / fps - length * unit_s) < _EVEN_FRAMES / fps
    if num_stamps < _FEW_STAMPS * num_packets or (is_even and video.container.format.name in _ESTIMATED_STAMPS):
        has_stamps = False
    if has_stamps and not is_joined:  # some headers state how long the last frame stands
        length = max(length, video.stream.duration or 0)
    may_seek = not is_joined and video.container.format.name not in _ESTIMATED_STAMPS
    return Timing((length if has_stamps else shown or duration) * unit_s, fps, has_stamps, is_joined, may_seek)


def _nearest_rate(stream: Any, counted: float) -> float:
    """Of the rates that the stream states and that FFmpeg estimates, the one nearest to that of the packets."""
    stated = (stream.codec_context.framerate, stream.guessed_rate, stream.average_rate)
    rates = [float(rate) for rate in stated if rate]
    return min(rates, key=lambda rate: abs(rate - counted), default=counted)


def _length_by_end_s(video: VideoFile) -> float:
    """Length in seconds by the packets' stamps, read but not decoded, for headers that do not state it.

    Raises
    ------
    VideoError
        If the file lost its end: no stream lasts as long as the container states, or bytes are missing.
    """
    with opened_again(video) as again:
        container, stream = again.container, again.stream
        for other in container.streams:
            other.discard = Discard.default
        beginning = [packet for packet in islice(_demuxed(container, stream), _REORDERED) if packet.pts is not None]
        if not beginning:
            return 0.0
        first = min(packet.pts for packet in beginning)
        end = max(packet.pts + (packet.duration or 0) for packet in beginning)
        stated_s = container.duration / av.time_base if container.duration else None
        if stated_s is not None and stated_s > 2 * _END_S:
            # In a long video, reading the end is enough.
            try:
                target_s = (container.start_time or 0) / av.time_base + stated_s - _END_S
                container.seek(int(target_s / stream.time_base), stream=stream, backward=True)
            except (av.error.FFmpegError, OSError):
                return stated_s
        end_s = float(end * stream.time_base)
        for packet in _demuxed(container):
            if packet.pts is None:
                continue
            packet_end = packet.pts + (packet.duration or 0)
            end_s = max(end_s, float(packet_end * packet.time_base))
            if packet.stream.index == stream.index:
                end = max(end, packet_end)
        length_s = float((end - first) * stream.time_base)
        present_s = end_s - (container.start_time or 0) / av.time_base
        if stated_s is None and video.end.is_whole is False:
            raise VideoError("decode", f"cut short: bytes are missing at its end, found frames up to {length_s:.2f} s")
        if stated_s is not None and not video.end.is_whole and clearly_shorter(present_s, stated_s, frame_rate(stream)):
            raise cut_short(length_s, stated_s)
        return length_s
