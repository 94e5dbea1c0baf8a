"""Decodes the planned clips of a video with PyAV, reading only what they need.

All clips are planned first. Then the file is opened once and read forward once. Only frames that a clip uses are
converted, each once for all boxes that are cut from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from scale_ray.clips import Clip, VideoGeometry, plan_clips
from scale_ray.config import Sampling
from scale_ray.decoding.augmentation import apply_augmentation
from scale_ray.decoding.cropping import Cropper, to_rgb
from scale_ray.decoding.frames import FrameReader, ReadAgain, geometry_of
from scale_ray.decoding.orientation import Orientation, orientation_of
from scale_ray.decoding.timing import clearly_shorter, cut_short, timing_of
from scale_ray.decoding.video_file import Source, open_video
from scale_ray.errors import VideoError

# Short side of the reduced frame whose mean is used for the contrast of augmented clips.
_REDUCED_PX = 64


@dataclass(frozen=True)
class DecodedClips:
    """The decoded clips of one video.

    `pixels`: per requested input size, uint8 (clips, frames, size, size, 3), RGB. `positions`: float32 (clips, 7), the
    fields of `clips.POSITION_FIELDS`: flip as 1 or -1, the box in pixels of the shown frame, and the times in seconds
    of the first and last frame used.
    """

    pixels: list[np.ndarray]
    positions: np.ndarray
    geometry: VideoGeometry


def pixel_shape(mode: str, sampling: Sampling, input_size_px: int) -> tuple[int, int, int, int, int]:
    """The shape of one video's pixels at one input size: (clips, frames, size, size, 3)."""
    return (sampling.num_clips(mode), sampling.frames, input_size_px, input_size_px, 3)


def decode_clips(
    source: Source,
    video_id: str,
    mode: str,
    sampling: Sampling,
    input_sizes_px: Sequence[int],
    into: Sequence[np.ndarray] | None = None,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
) -> DecodedClips:
    """Decode the planned clips of one video, resized to `size` x `size` for each size of `input_sizes_px`.

    Frames are selected by time stamp: the last frame at or before the planned time. If the stamps do not increase in
    the decoder's output order, that order and the times of decoding are used instead, and without any stamps the frame
    rate. The pixels are the same as when reading from the start, whatever was skipped; damage in a skipped part of the
    file is ignored. If `into` is given, the pixels are written into its arrays (shapes as in `pixel_shape`).

    With `start_s` or `end_s`, in seconds since the first frame, the video is that segment of the file: its clips, its
    duration and its times are those of the segment. A segment that ends after the file ends with it.

    Raises
    ------
    VideoError
        Stage `open` if the source is not a readable video, stage `decode` if it cannot be decoded up to the last frame
        that is needed, or ends before the segment begins.
    """
    pixels = (
        list(into)
        if into is not None
        else [np.empty(pixel_shape(mode, sampling, size), np.uint8) for size in input_sizes_px]
    )
    assert [array.shape for array in pixels] == [pixel_shape(mode, sampling, size) for size in input_sizes_px]

    def read(*, by_stamp: bool, may_seek: bool) -> DecodedClips:
        with open_video(source) as video:
            reader = FrameReader(video, timing_of(video), by_stamp=by_stamp, may_seek=may_seek)
            try:
                return _decode(reader, video_id, mode, sampling, pixels, (start_s, end_s))
            except (av.error.FFmpegError, OSError, VideoError) as error:
                if reader.has_sought:  # perhaps because of the seek: read from the start first
                    raise ReadAgain(by_stamp=True) from error
                raise

    try:
        try:
            return read(by_stamp=True, may_seek=True)
        except ReadAgain as again:
            by_stamp = again.by_stamp
        try:
            return read(by_stamp=by_stamp, may_seek=False)
        except ReadAgain:
            return read(by_stamp=False, may_seek=False)
    except av.error.FFmpegError as error:
        kind = "damaged" if isinstance(error, av.error.InvalidDataError) else "FFmpeg cannot decode it"
        raise VideoError("decode", f"{kind}: {error.strerror or error}") from error
    except OSError as error:
        raise VideoError("decode", f"cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class _CropGroup:
    """Clips with the same frames and the same box size, which are converted together."""

    clips: list[int]
    croppers: list[Cropper]


@dataclass(frozen=True)
class _Segment:
    """A part of a video, in seconds since its first frame."""

    start_s: float
    end_s: float
    last_s: float  # the latest time at which a frame of it is shown

    @classmethod
    def of(cls, geometry: VideoGeometry, start_s: float | None, end_s: float | None, same_time_s: float) -> _Segment:
        start_s = start_s or 0.0
        if start_s and start_s >= geometry.duration_s:
            raise VideoError(
                "decode",
                f"segment: expected a start before the end of the video at {geometry.duration_s:.2f} s, "
                f"found {start_s:g} s",
            )
        if end_s is None or end_s >= geometry.duration_s:
            return cls(start_s, geometry.duration_s, float("inf"))
        # The frame that begins where the segment ends is not part of it.
        return cls(start_s, end_s, max(end_s - 2 * same_time_s, start_s))

    def video_time_s(self, time_s: float) -> float:
        return min(self.start_s + time_s, self.last_s)


def _decode(
    reader: FrameReader,
    video_id: str,
    mode: str,
    sampling: Sampling,
    pixels: Sequence[np.ndarray],
    limits_s: tuple[float | None, float | None],
) -> DecodedClips:
    first = reader.shown[1]
    whole = geometry_of(reader)
    segment = _Segment.of(whole, *limits_s, reader.same_time_s)
    geometry = replace(whole, duration_s=segment.end_s - segment.start_s)
    clips = plan_clips(video_id, mode, geometry, sampling)
    groups = _crop_groups(clips, geometry, orientation_of(first), [array.shape[2] for array in pixels])
    wanted = sorted(
        (segment.video_time_s(time), g, t)
        for g, group in enumerate(groups)
        for t, time in enumerate(clips[group.clips[0]].times_s)
    )
    used_s = np.zeros((len(clips), sampling.frames))
    reduced, reduced_frames = _ReducedFrame(), [list[np.ndarray]() for _ in clips]
    for wanted_s, g, t in wanted:
        time_s, frame = reader.frame_at(wanted_s)
        if frame.is_corrupt:
            raise VideoError("decode", f"damaged: the frame at {time_s:.2f} s is corrupt")
        group = groups[g]
        repeated = t > 0 and used_s[group.clips[0], t - 1] == time_s
        used_s[group.clips, t] = time_s
        for c in group.clips:
            if clips[c].appearance is not None:
                reduced_frames[c].append(reduced.to_rgb(frame))
        for array, cropper in zip(pixels, group.croppers, strict=True):
            if repeated:
                array[group.clips, t] = array[group.clips, t - 1]
                continue
            for c, crop in zip(group.clips, cropper.cut(frame), strict=True):
                array[c, t] = crop[:, ::-1] if clips[c].flipped else crop
    _augment(pixels, clips, reduced_frames)
    _check_not_cut_short(reader, min(wanted[-1][0], segment.end_s))
    # The frame that is shown where a segment begins may have begun before.
    used_s = np.maximum(used_s - segment.start_s, 0.0)
    positions = np.array(
        [(1.0 if clip.flipped else -1.0, *clip.box_px, used_s[c, 0], used_s[c, -1]) for c, clip in enumerate(clips)],
        np.float32,
    )
    return DecodedClips(list(pixels), positions, geometry)


def _crop_groups(
    clips: Sequence[Clip], geometry: VideoGeometry, orientation: Orientation, input_sizes_px: Sequence[int]
) -> list[_CropGroup]:
    groups: dict[tuple[tuple[float, ...], int, int], list[int]] = {}
    for c, clip in enumerate(clips):
        y0, x0, y1, x1 = clip.box_px
        groups.setdefault((clip.times_s, y1 - y0, x1 - x0), []).append(c)
    shown_px = (geometry.height_px, geometry.width_px)
    return [
        _CropGroup(
            members,
            [Cropper([clips[c].box_px for c in members], shown_px, size, orientation) for size in input_sizes_px],
        )
        for members in groups.values()
    ]


def _augment(
    pixels: Sequence[np.ndarray], clips: Sequence[Clip], reduced_frames: Sequence[Sequence[np.ndarray]]
) -> None:
    """Change the appearance of the decoded clips in place: it depends on all frames of a clip."""
    for c, clip in enumerate(clips):
        if clip.appearance is not None:
            y0, x0, y1, x1 = clip.box_px
            for array in pixels:
                scale = (array.shape[2] / (y1 - y0), array.shape[3] / (x1 - x0))
                array[c] = apply_augmentation(array[c], reduced_frames[c], clip.appearance, scale)


class _ReducedFrame:
    """The whole frame at a reduced size, computed once for all clips that use it."""

    def __init__(self) -> None:
        self._converter = VideoReformatter()
        self._frame: VideoFrame | None = None
        self._rgb = np.empty((0, 0, 3), np.uint8)

    def to_rgb(self, frame: VideoFrame) -> np.ndarray:
        """The reduced frame, uint8 (h, w, 3)."""
        if frame is not self._frame:
            shrink = min(_REDUCED_PX / min(frame.height, frame.width), 1.0)
            width, height = (max(round(length * shrink), 1) for length in (frame.width, frame.height))
            self._frame = frame
            reduced = to_rgb(self._converter, frame, width, height)
            self._rgb = np.asarray(reduced.to_ndarray(), np.uint8)
        return self._rgb


def _check_not_cut_short(reader: FrameReader, needed_s: float) -> None:
    """Raise a VideoError if the frames end clearly before the packets do, or the packets before the stated length.

    A container that is whole and states more ends with a frame that stands: not all of them state for how long.
    """
    found_s, packets_s, fps = reader.frames_end_s, reader.packets_end_s, reader.timing.fps
    if found_s is None or needed_s <= found_s:
        return
    may_lack_packets = reader.timing.is_believed and not reader.video.end.is_whole
    for expected_s in (packets_s, reader.length_s if may_lack_packets else packets_s):
        if clearly_shorter(found_s, expected_s, fps):
            raise cut_short(found_s, expected_s)


def video_bytes(mode: str, sampling: Sampling, input_sizes_px: Sequence[int]) -> int:
    """Bytes of one video's pixels at all input sizes together."""
    return sum(int(np.prod(pixel_shape(mode, sampling, size))) for size in input_sizes_px)
