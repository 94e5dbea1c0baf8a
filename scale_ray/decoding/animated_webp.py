"""Animated WebP files as videos: FFmpeg opens them, but does not decode them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import IO

import av
import numpy as np
from PIL import Image

from scale_ray.errors import VideoError

_BEGINNING_BYTES = 21
_ANIMATED = 2
_MS = Fraction(1, 1000)


def is_animated_webp(file: IO[bytes]) -> bool:
    """Whether a file is an animated WebP; it is left at its beginning."""
    beginning = file.read(_BEGINNING_BYTES)
    file.seek(0)
    return len(beginning) == _BEGINNING_BYTES and beginning[8:16] == b"WEBPVP8X" and bool(beginning[20] & _ANIMATED)


def decoded_webp(file: IO[bytes]) -> IO[bytes]:
    """The frames of an animated WebP as a video in memory, without loss; transparent pixels keep their colour.

    Raises
    ------
    VideoError
        Stage `open` if it cannot be decoded.
    """
    video = io.BytesIO()
    with av.open(video, "w", format="mov") as container:
        stream = container.add_stream("png", rate=1000)
        shown_ms = 0
        for image, duration_ms in _frames(file):
            if not shown_ms:
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt, stream.time_base = "rgb24", _MS
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = shown_ms, _MS
            for packet in stream.encode(frame):
                packet.duration = duration_ms  # also of the last frame
                container.mux(packet)
            shown_ms += duration_ms
    video.seek(0)
    return video


def _frames(file: IO[bytes]) -> Iterator[tuple[np.ndarray, int]]:
    """Every frame, uint8 (height, width, 3), and for how many milliseconds it is shown."""
    try:
        with Image.open(file, formats=["WEBP"]) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                yield np.asarray(image.convert("RGB")), max(int(image.info.get("duration", 0)), 1)
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError("open", f"not a readable video: an animated WebP that is damaged ({error})") from error
