"""How decoded frames are turned and mirrored to be shown: the eight orientations of a display matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

from scale_ray.clips import Box
from scale_ray.errors import VideoError


def _unknown_type(cls: type[Any], value: int) -> Any:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


# PyAV lists the side data of a frame by type and fails if one, such as FFmpeg's EXIF, is newer than its own list.
Type._missing_ = classmethod(_unknown_type)  # type: ignore[assignment]

# Part of the larger entries of a row that the smaller ones may have: rounding, not an angle (0.01 is 0.6 degrees).
_ROUNDING = 0.01


@dataclass(frozen=True)
class Orientation:
    """From the decoded to the shown frame: first rows and columns are swapped, then their order is reversed."""

    swapped: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def shown_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as shown of an image of this height and width."""
        return (width, height) if self.swapped else (height, width)

    def shown(self, image: np.ndarray) -> np.ndarray:
        """An image (height, width, ...) as it is shown: a view."""
        image = image.swapaxes(0, 1) if self.swapped else image
        return image[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]

    def shown_box(self, box: Box, height: int, width: int) -> Box:
        """Where a box of an image of this height and width is when the image is shown."""
        y0, x0, y1, x1 = (box[1], box[0], box[3], box[2]) if self.swapped else box
        return self._reversed((y0, x0, y1, x1), *self.shown_size(height, width))

    def decoded_box(self, box: Box, height: int, width: int) -> Box:
        """Where a box of the shown image is in the image itself, which has this height and width."""
        y0, x0, y1, x1 = self._reversed(box, *self.shown_size(height, width))
        return (x0, y0, x1, y1) if self.swapped else (y0, x0, y1, x1)

    def _reversed(self, box: Box, height: int, width: int) -> Box:
        y0, x0, y1, x1 = box
        if self.rows_reversed:
            y0, y1 = height - y1, height - y0
        if self.columns_reversed:
            x0, x1 = width - x1, width - x0
        return (y0, x0, y1, x1)


def orientation_of(frame: VideoFrame) -> Orientation:
    """The orientation that the display matrix of a frame states; without a matrix, frames are shown as decoded.

    The matrix is (a, b, u, c, d, v, x, y, w): a decoded pixel (column, row) is shown in column a * column + c * row and
    row b * column + d * row, up to a shift. As in players, only a, b, c and d count, and their size does not.

    Raises
    ------
    VideoError
        Stage `decode` if it is none of the eight orientations.
    """
    side_data: Any = frame.side_data  # PyAV's type stub knows only one of its keys
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    kept, swapped = min(abs(a), abs(d)), min(abs(b), abs(c))
    if kept and max(abs(b), abs(c)) <= _ROUNDING * kept:
        return Orientation(rows_reversed=d < 0, columns_reversed=a < 0)
    if swapped and max(abs(a), abs(d)) <= _ROUNDING * swapped:
        return Orientation(swapped=True, rows_reversed=b < 0, columns_reversed=c < 0)
    if not any((a, b, c, d)):  # written by some programs that mean: not stated
        return Orientation()
    unit = 1 << 16
    shown = f"{a / unit:.3g} {b / unit:.3g} {c / unit:.3g} {d / unit:.3g}"
    raise VideoError(
        "decode", f"display matrix: expected quarter turns, mirrored or not, found another transformation ({shown})"
    )
