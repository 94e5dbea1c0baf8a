"""Crops boxes out of decoded frames: first the crop, then colour conversion and resizing in one step."""

from __future__ import annotations

from collections.abc import Sequence

import av.filter
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from scale_ray.clips import Box
from scale_ray.decoding.frames import quarter_turns


class Cropper:
    """Cuts boxes of one size out of the frames of one video and resizes each to `input_size_px` x `input_size_px`.

    The smallest region that contains all boxes is converted to RGB and resized in one step; the converter is reused for
    the next frame. Boxes are in whole pixels of the shown frame.
    """

    def __init__(self, boxes: Sequence[Box], shown_px: tuple[int, int], input_size_px: int) -> None:
        self._boxes, self._shown_px, self._input_size_px = boxes, shown_px, input_size_px
        self._converter = VideoReformatter()
        self._crop: _Crop | None = None

    def cut(self, frame: VideoFrame) -> list[np.ndarray]:
        """One uint8 (input_size_px, input_size_px, 3) array per box: views that are valid until the next call."""
        if self._crop is None or not self._crop.fits(frame):
            # Once per video, and again if the frame size changes within it.
            self._crop = _Crop(self._boxes, self._shown_px, self._input_size_px, frame)
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
        image = np.rot90(image.reshape(crop.height_px, crop.width_px, 3), crop.turns)
        size = self._input_size_px
        return [image[top : top + size, left : left + size] for top, left in crop.corners]


class _Crop:
    """The region of the decoded frame that contains all boxes, and their corners in the resized region."""

    def __init__(self, boxes: Sequence[Box], shown_px: tuple[int, int], input_size_px: int, frame: VideoFrame) -> None:
        self.turns = quarter_turns(frame)
        self._frame = (frame.width, frame.height, frame.format.name, frame.rotation)
        new_px = (frame.width, frame.height) if self.turns % 2 else (frame.height, frame.width)
        if new_px != shown_px:
            boxes = [_rescaled(box, shown_px, new_px) for box in boxes]
        coded = [_coded_box(box, self.turns, frame.height, frame.width) for box in boxes]
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
            _turned_corner(corner, self.turns, self.height_px, self.width_px, input_size_px) for corner in coded_corners
        ]
        self._graph: av.filter.Graph | None = None
        if (y0, x0, y1, x1) != (0, 0, frame.height, frame.width):
            self._graph = _crop_graph(frame, f"w={x1 - x0}:h={y1 - y0}:x={x0}:y={y0}:exact=1")

    def fits(self, frame: VideoFrame) -> bool:
        return self._frame == (frame.width, frame.height, frame.format.name, frame.rotation)

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


def _coded_box(box: Box, turns: int, height: int, width: int) -> Box:
    """A box of the shown frame, in pixels of the decoded frame; `turns` quarter turns lead from decoded to shown."""
    y0, x0, y1, x1 = box
    if turns == 1:
        return (x0, width - y1, x1, width - y0)
    if turns == 2:
        return (height - y1, width - x1, height - y0, width - x0)
    if turns == 3:
        return (height - x1, y0, height - x0, y1)
    return box


def _turned_corner(corner: tuple[int, int], turns: int, height: int, width: int, size_px: int) -> tuple[int, int]:
    """The upper left corner of a square after the image is turned counter-clockwise by `turns` quarter turns."""
    top, left = corner
    if turns == 1:
        return (width - left - size_px, top)
    if turns == 2:
        return (height - top - size_px, width - left - size_px)
    if turns == 3:
        return (left, height - top - size_px)
    return corner


def _rescaled(box: Box, old_px: tuple[int, int], new_px: tuple[int, int]) -> Box:
    """The same relative box in a frame of another size."""
    low = [int(box[axis] * new_px[axis % 2] / old_px[axis % 2]) for axis in (0, 1)]
    high = [int(box[axis] * new_px[axis % 2] / old_px[axis % 2]) for axis in (2, 3)]
    return (low[0], low[1], max(high[0], low[0] + 1), max(high[1], low[1] + 1))
