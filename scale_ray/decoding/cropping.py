"""Crops boxes out of decoded frames: first the crop, then colour conversion and resizing in one step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import av.error
import av.filter
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from scale_ray.clips import Box
from scale_ray.decoding.orientation import Orientation
from scale_ray.errors import VideoError

# Names of FFmpeg's numbers of colour spaces, usual ones and those that it does not convert.
_COLOUR_SPACES = {1: "BT.709", 2: "unspecified", 5: "BT.601", 6: "BT.601", 8: "YCgCo", 9: "BT.2020", 14: "ICtCp"}


class Cropper:
    """Cuts boxes of one size out of the frames of one video and resizes each to `input_size_px` x `input_size_px`.

    The smallest region that contains all boxes is converted to RGB and resized in one step; the converter is reused for
    the next frame. Boxes are in whole pixels of the shown frame.

    `orientation` is that of the video: a stream may state it only in its first frame or in its key frames.
    """

    def __init__(
        self, boxes: Sequence[Box], shown_px: tuple[int, int], input_size_px: int, orientation: Orientation
    ) -> None:
        self._boxes, self._shown_px, self._input_size_px = boxes, shown_px, input_size_px
        self._orientation = orientation
        self._converter = VideoReformatter()
        self._crop: _Crop | None = None

    def cut(self, frame: VideoFrame) -> list[np.ndarray]:
        """One uint8 (input_size_px, input_size_px, 3) array per box: views that are valid until the next call."""
        if self._crop is None or not self._crop.fits(frame):
            # Once per video, and again if the frame size changes within it.
            self._crop = _Crop(self._boxes, self._shown_px, self._input_size_px, self._orientation, frame)
        crop = self._crop
        region = crop.region(frame)
        rgb = to_rgb(self._converter, region, crop.width_px, crop.height_px, Interpolation.BILINEAR)
        plane = rgb.planes[0]
        image = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : crop.height_px, : crop.width_px * 3
        ]
        image = self._orientation.shown(image.reshape(crop.height_px, crop.width_px, 3))
        size = self._input_size_px
        return [image[top : top + size, left : left + size] for top, left in crop.corners]


def to_rgb(
    converter: VideoReformatter,
    frame: VideoFrame,
    width_px: int,
    height_px: int,
    interpolation: Interpolation | None = None,
) -> VideoFrame:
    """A frame as RGB at another size.

    Raises
    ------
    VideoError
        Stage `decode` if FFmpeg cannot convert its format or its colour space, or not to that size.
    """
    try:
        return converter.reformat(
            frame, width=width_px, height=height_px, format="rgb24", interpolation=interpolation, threads=1
        )
    except (av.error.FFmpegError, OSError) as error:
        space = _COLOUR_SPACES.get(frame.colorspace, f"number {frame.colorspace}")
        raise VideoError(
            "decode",
            f"FFmpeg cannot convert {frame.width}x{frame.height} px of {frame.format.name} (colour space {space})"
            f" to {width_px}x{height_px} px of RGB: {error.strerror or error}",
        ) from error


class _Crop:
    """The region of the decoded frame that contains all boxes, and their corners in the resized region.

    Resizing the region also makes pixels square that are not: its two axes have different scales.
    """

    def __init__(
        self,
        boxes: Sequence[Box],
        shown_px: tuple[int, int],
        input_size_px: int,
        orientation: Orientation,
        frame: VideoFrame,
    ) -> None:
        self._frame = (frame.width, frame.height, frame.format.name)
        limits = (frame.height, frame.width)
        decoded = [_decoded_box(box, shown_px, orientation, limits) for box in boxes]
        # A region starts on a chroma sample. Boxes that start elsewhere are cut at the nearest pixel of the resized
        # region, at most half a pixel off.
        steps = (8 // frame.format.chroma_height(8), 8 // frame.format.chroma_width(8))
        y0, x0 = (int(min(box[axis] for box in decoded)) // steps[axis] * steps[axis] for axis in (0, 1))
        y1, x1 = (min(math.ceil(max(box[axis + 2] for box in decoded)), limits[axis]) for axis in (0, 1))
        scale_y, scale_x = (input_size_px / (decoded[0][axis + 2] - decoded[0][axis]) for axis in (0, 1))
        self.height_px = max(round((y1 - y0) * scale_y), input_size_px)
        self.width_px = max(round((x1 - x0) * scale_x), input_size_px)
        decoded_corners = [
            (
                min(round((box[0] - y0) * scale_y), self.height_px - input_size_px),
                min(round((box[1] - x0) * scale_x), self.width_px - input_size_px),
            )
            for box in decoded
        ]
        self.corners = [
            orientation.shown_box(
                (top, left, top + input_size_px, left + input_size_px), self.height_px, self.width_px
            )[:2]
            for top, left in decoded_corners
        ]
        self._graph: av.filter.Graph | None = None
        if (y0, x0, y1, x1) != (0, 0, frame.height, frame.width):
            self._graph = _crop_graph(frame, f"w={x1 - x0}:h={y1 - y0}:x={x0}:y={y0}:exact=1")

    def fits(self, frame: VideoFrame) -> bool:
        return self._frame == (frame.width, frame.height, frame.format.name)

    def region(self, frame: VideoFrame) -> VideoFrame:
        if self._graph is None:
            return frame
        self._graph.push(frame)
        cropped = self._graph.pull()
        assert isinstance(cropped, VideoFrame)
        return cropped


def _crop_graph(frame: VideoFrame, arguments: str) -> av.filter.Graph:
    """FFmpeg's crop filter, which moves pointers and copies no pixels."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    crop, sink = graph.add("crop", arguments), graph.add("buffersink")
    source.link_to(crop)
    crop.link_to(sink)
    graph.configure()
    return graph


def _decoded_box(
    box: Box, shown_px: tuple[int, int], orientation: Orientation, decoded_px: tuple[int, int]
) -> tuple[float, ...]:
    """Where a box of the shown frame is in the decoded frame, in pixels and parts of pixels.

    The frame may be decoded at another size than it is shown at: its pixels need not be square, and its size may change
    within a video.
    """
    upright_px = orientation.shown_size(*shown_px)  # either way: rows and columns are swapped, or not
    upright = orientation.decoded_box(box, *upright_px)
    return tuple(edge * decoded_px[axis % 2] / upright_px[axis % 2] for axis, edge in enumerate(upright))
