"""The plan's pixels, read sparsely with PyAV.

All clips are planned first; then the file is opened once and read forward once. Only the frames that a
clip uses are converted, each once for every box that is cut from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from scale_ray.clips import Clip, VideoGeometry, plan_clips
from scale_ray.config import Sampling
from scale_ray.decoding.augmentation import apply_augmentation
from scale_ray.decoding.cropping import Cropper
from scale_ray.decoding.frames import FrameReader, ReadAgain, Source, geometry_of, opened, video_stream
from scale_ray.errors import VideoError

# Short side of the small whole frame that an augmented clip's contrast is measured on.
_SMALL_PX = 64


@dataclass(frozen=True)
class DecodedClips:
    """The clips of one video.

    `pixels`: for every asked side, uint8 (clips, frames, side, side, 3), RGB. `positions`: float32
    (clips, 7), the fields of `clips.POSITION_FIELDS`: flip as 1 or -1, the box in pixels of the shown
    frame, the times in seconds of the first and last frame used.
    """

    pixels: list[np.ndarray]
    positions: np.ndarray
    geometry: VideoGeometry


def pixel_shape(mode: str, sampling: Sampling, input_size_px: int) -> tuple[int, int, int, int, int]:
    """Shape of one video's pixels at one side."""
    return (sampling.num_clips(mode), sampling.frames, input_size_px, input_size_px, 3)


def decode_clips(
    source: Source,
    video_id: str,
    mode: str,
    sampling: Sampling,
    input_sizes_px: Sequence[int],
    into: Sequence[np.ndarray] | None = None,
) -> DecodedClips:
    """Decode the planned clips of one video, resized to `side` x `side` for each of `input_sizes_px`.

    Frames are chosen by time stamp: the last one shown at or before the planned time. Where the stamps
    do not rise in the order in which the decoder gives the frames, that order and the average frame
    rate count instead. The pixels are those of a reading from the start, whatever was skipped; in a
    damaged file the damage that was skipped does not count. Written into the arrays of `into` (of
    `pixel_shape`), where given.

    Raises
    ------
    VideoError
        Stage `open` where there is no video to read, stage `decode` where it cannot be read to the
        last frame that is needed.
    """
    pixels = (
        list(into) if into is not None else [np.empty(pixel_shape(mode, sampling, s), np.uint8) for s in input_sizes_px]
    )
    assert [array.shape for array in pixels] == [pixel_shape(mode, sampling, side) for side in input_sizes_px]

    def read(*, by_stamp: bool, may_seek: bool) -> DecodedClips:
        with opened(source) as container:
            reader = FrameReader(container, video_stream(container), by_stamp=by_stamp, may_seek=may_seek)
            try:
                return _decode(source, reader, video_id, mode, sampling, pixels)
            except (av.error.FFmpegError, VideoError) as error:
                if reader.has_sought:  # the seek may be to blame: read from the start before saying so
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
        raise VideoError("decode", f"damaged: {error.strerror or error}") from error


@dataclass(frozen=True)
class _View:
    """Clips that see the same frames through boxes of one size: converted together."""

    clips: list[int]
    croppers: list[Cropper]


def _decode(
    source: Source,
    reader: FrameReader,
    video_id: str,
    mode: str,
    sampling: Sampling,
    pixels: Sequence[np.ndarray],
) -> DecodedClips:
    geometry = geometry_of(source, reader.stream, reader.shown[1])
    clips = plan_clips(video_id, mode, geometry, sampling)
    views = _views(clips, geometry, [array.shape[2] for array in pixels])
    wanted = sorted((time, v, t) for v, view in enumerate(views) for t, time in enumerate(clips[view.clips[0]].times_s))
    used_s = np.zeros((len(clips), sampling.frames))
    small = _SmallFrame()
    for wanted_s, v, t in wanted:
        time_s, frame = reader.at(wanted_s)
        if frame.is_corrupt:
            raise VideoError("decode", f"damaged: the frame at {time_s:.2f} s is corrupt")
        view = views[v]
        repeated = t > 0 and used_s[view.clips[0], t - 1] == time_s
        used_s[view.clips, t] = time_s
        for array, cropper in zip(pixels, view.croppers, strict=True):
            if repeated:
                array[view.clips, t] = array[view.clips, t - 1]
                continue
            for c, cut in zip(view.clips, cropper.cut(frame), strict=True):
                array[c, t] = _as_planned(cut, clips[c], frame, small)
    _refuse_truncated(reader.shown[0], geometry, min(wanted[-1][0], geometry.duration_s))
    positions = np.array(
        [(1.0 if clip.flipped else -1.0, *clip.box_px, used_s[c, 0], used_s[c, -1]) for c, clip in enumerate(clips)],
        np.float32,
    )
    return DecodedClips(list(pixels), positions, geometry)


def _views(clips: Sequence[Clip], geometry: VideoGeometry, input_sizes_px: Sequence[int]) -> list[_View]:
    together: dict[tuple, list[int]] = {}
    for c, clip in enumerate(clips):
        y0, x0, y1, x1 = clip.box_px
        together.setdefault((clip.times_s, y1 - y0, x1 - x0), []).append(c)
    shown_px = (geometry.height_px, geometry.width_px)
    return [
        _View(members, [Cropper([clips[c].box_px for c in members], shown_px, side) for side in input_sizes_px])
        for members in together.values()
    ]


def _as_planned(cut: np.ndarray, clip: Clip, frame: VideoFrame, small: _SmallFrame) -> np.ndarray:
    if clip.appearance is not None:
        y0, x0, y1, x1 = clip.box_px
        px_of_frame = (cut.shape[0] / (y1 - y0), cut.shape[1] / (x1 - x0))
        cut = apply_augmentation(cut, small.of(frame), clip.appearance, px_of_frame)
    return cut[:, ::-1] if clip.flipped else cut


class _SmallFrame:
    """The whole frame, made small once for all clips that use it."""

    def __init__(self) -> None:
        self._converter = VideoReformatter()
        self._frame: VideoFrame | None = None
        self._small = np.empty((0, 0, 3), np.uint8)

    def of(self, frame: VideoFrame) -> np.ndarray:
        if frame is not self._frame:
            shrink = min(_SMALL_PX / min(frame.height, frame.width), 1.0)
            width, height = (max(round(length * shrink), 1) for length in (frame.width, frame.height))
            self._frame = frame
            small = self._converter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
            self._small = np.asarray(small.to_ndarray(), np.uint8)
        return self._small


def _refuse_truncated(last_s: float, geometry: VideoGeometry, needed_s: float) -> None:
    """A header that promises clearly more than the file holds means a file cut short."""
    # Headers exceed the truth by a frame or two in good files; a quarter second or 5 % is no rounding.
    if needed_s - last_s > max(0.25, 0.05 * geometry.duration_s, 3 / max(geometry.fps, 1)):
        raise VideoError("decode", f"cut short: {geometry.duration_s:.2f} s promised, frames end at {last_s:.2f} s")


def video_bytes(mode: str, sampling: Sampling, input_sizes_px: Sequence[int]) -> int:
    """Bytes of one video's pixels at all sides."""
    return sum(int(np.prod(pixel_shape(mode, sampling, side))) for side in input_sizes_px)
