"""Crops boxes out of decoded frames: first the crop, then colour conversion and resizing in one step."""

from __future__ import annotations

from collections.abc import Sequence

import av.filter
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from scale_ray.clips import Box
from scale_ray.decoding.orientation import Orientation


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
        rgb = self._converter.reformat(
            crop.region(frame),
            width=crop.width_px,
            height=crop.height_px,
            format="rgb24",
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        plane = rgb.planes[0]
        image = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : crop.height_px, : crop.width_px * 3
        ]
        image = self._orientation.shown(image.reshape(crop.height_px, crop.width_px, 3))
        size = self._input_size_px
        return [image[top : top + size, left : left + size] for top, left in crop.corners]


class _Crop:
    """The region of the decoded frame that contains all boxes, and their corners in the resized region."""

    def __init__(
        self,
        boxes: Sequence[Box],
        shown_px: tuple[int, int],
        input_size_px: int,
        orientation: Orientation,
        frame: VideoFrame,
    ) -> None:
        self._frame = (frame.width, frame.height, frame.format.name)
        new_px = orientation.shown_size(frame.height, frame.width)
        if new_px != shown_px:
            boxes = [_rescaled(box, shown_px, new_px) for box in boxes]
        coded = [orientation.decoded_box(box, frame.height, frame.width) for box in boxes]
        # A region starts on a chroma sample. Boxes that start elsewhere are cut at the nearest pixel of the resized
        # region, at most half a pixel off.
        steps = (8 // frame.format.chroma_height(8), 8 // frame.format.chroma_width(8))
        y0, x0 = (min(box[axis] for box in coded) // steps[axis] * steps[axis] for axis in (0, 1))
        y1, x1 = (max(box[axis] for box in coded) for axis in (2, 3))
        scale_y, scale_x = (input_size_px / (coded[0][axis + 2] - coded[0][axis]) for axis in (0, 1))
        self.height_px = max(round((y1 - y0) * scale_y), input_size_px)
        self.width_px = max(round((x1 - x0) * scale_x), input_size_px)
        coded_corners = [
            (
                min(round((box[0] - y0) * scale_y), self.height_px - input_size_px),
                min(round((box[1] - x0) * scale_x), self.width_px - input_size_px),
            )
            for box in coded
        ]
        self.corners = [
            orientation.shown_box(
                (top, left, top + input_size_px, left + input_size_px), self.height_px, self.width_px
            )[:2]
            for top, left in coded_corners
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


def _rescaled(box: Box, old_px: tuple[int, int], new_px: tuple[int, int]) -> Box:
    """The same relative box in a frame of another size."""
    low = [int(box[axis] * new_px[axis % 2] / old_px[axis % 2]) for axis in (0, 1)]
    high = [int(box[axis] * new_px[axis % 2] / old_px[axis % 2]) for axis in (2, 3)]
    return (low[0], low[1], max(high[0], low[0] + 1), max(high[1], low[1] + 1))
