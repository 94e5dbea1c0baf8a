"""One frame of each video, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from scale_ray.config import Extraction, Sampling
from scale_ray.decoder_process import Decoder, Request, SharedPixels
from scale_ray.errors import VideoError
from scale_ray.pixel_blocks import video_bytes

# Two starts, at the beginning and in the middle, of clips of one frame; a square from its centre.
_TWO_FRAMES = Sampling(frames=1, stride=1, eval_times=2, eval_crops=1)


def thumbnails(paths: Sequence[str], side_px: int = 160) -> Iterator[np.ndarray | None]:
    """The central square of each video's middle frame, uint8 (side, side, 3), RGB; None where it cannot be read."""
    limits = Extraction()
    pixels = SharedPixels(video_bytes("eval", _TWO_FRAMES, [side_px]))
    with Decoder(timeout_s=limits.decode_timeout_s, memory_gib=limits.decode_memory_gib) as decoder:
        for path in paths:
            request = Request(path, path, "eval", _TWO_FRAMES, (side_px,), (0,))
            try:
                decoder.decode(request, pixels)
            except VideoError:
                yield None
                continue
            both = np.frombuffer(pixels.memory, np.uint8).reshape(2, side_px, side_px, 3)
            yield both[1].copy()
