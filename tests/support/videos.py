"""Videos with distinguishable frames, for tests of the decoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 30
INPUT_SIZE_PX = 32
KEPT_BACK = {"preset": "veryfast", "bf": "3", "sc_threshold": "0"}


def picture(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Moving waves, and a square whose colour differs between neighbouring frames."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin((x + 2 * number) / 9), np.sin((y - 1.5 * number) / 11), np.sin((x + y + number) / 13)]
    image = 127 + 60 * np.stack(waves, -1)
    image[8:24, 8:24] = [(number * 37) % 256, (number * 11) % 256, (number // 4) % 256]
    return image.astype(np.uint8)


def encode(path: Path, codec: str = "libx264", *, seconds: int = 10, size=(64, 96), **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"threads": "1", **options})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(seconds * FPS):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
