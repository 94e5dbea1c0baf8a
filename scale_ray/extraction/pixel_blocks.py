"""Blocks of decoded videos: tables whose pixels stay where the decoder wrote them.

One row per video. Its pixels are one binary value per input size (`pixels_112`, uint8 (clips, frames, 112, 112, 3)).
The values of a block are contiguous, so that a backbone can take batches across video boundaries. A video that could
not be decoded has a row with a reason and no pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scale_ray.config import Sampling
from scale_ray.decoding import Decoder, Request, SharedPixels, video_bytes
from scale_ray.errors import VideoError
from scale_ray.extraction.results import ROW, pixels_column


def decode_videos(
    videos: Sequence[dict[str, Any]],
    decoder: Decoder,
    sampling: Sampling,
    input_sizes_px: Sequence[int],
    videos_per_block: int,
) -> Iterator[pa.Table]:
    """Decode videos of one mode, given as `video_id`, `path`, `mode` and `shard`, into blocks.

    A segment of a file also has `start_s` and `end_s`.
    A block is complete once it holds `videos_per_block` decoded videos; failed videos take no memory in it.
    """
    if not videos:
        return
    bytes_per_video = [video_bytes(videos[0]["mode"], sampling, [size]) for size in input_sizes_px]
    rows: list[dict[str, Any]] = []
    pixels, num_decoded = _free_buffer(videos_per_block * sum(bytes_per_video)), 0
    for video in videos:
        starts = _starts(bytes_per_video, videos_per_block)
        offsets = tuple(start + num_decoded * size for start, size in zip(starts, bytes_per_video, strict=True))
        request = Request(
            video["path"],
            video["video_id"],
            video["mode"],
            sampling,
            tuple(input_sizes_px),
            offsets,
            video.get("start_s"),
            video.get("end_s"),
        )
        row = {name: video[name] for name in ("video_id", "mode", "shard")}
        try:
            decoded = decoder.decode(request, pixels)
        except VideoError as error:
            rows.append(row | {"stage": error.stage, "reason": error.reason, "exception": error.exception})
            continue
        known = {"positions": decoded.positions.tobytes(), "size_bytes": decoded.size_bytes}
        rows.append(row | known | vars(decoded.geometry))
        num_decoded += 1
        if num_decoded == videos_per_block:
            yield _block(rows, pixels, bytes_per_video, input_sizes_px, videos_per_block)
            rows, num_decoded = [], 0
            pixels = _free_buffer(videos_per_block * sum(bytes_per_video))
    if rows:
        yield _block(rows, pixels, bytes_per_video, input_sizes_px, videos_per_block)


# Reused by later blocks and tasks: new memory costs a page fault for every 4 KiB.
_buffers: list[SharedPixels] = []


def _free_buffer(num_bytes: int) -> SharedPixels:
    """A buffer of this size: one that is no longer in use, otherwise a new one."""
    _buffers[:] = [buffer for buffer in _buffers if buffer.num_bytes == num_bytes]
    for buffer in _buffers:
        if not buffer.in_use:
            return buffer
    _buffers.append(SharedPixels(num_bytes))
    return _buffers[-1]


def pixels_of(block: pa.Table, sampling: Sampling, input_size_px: int) -> np.ndarray:
    """The decoded clips of a block, without copying: uint8 (clips, frames, size, size, 3)."""
    chunks = block[pixels_column(input_size_px)].chunks
    # `combine_chunks` would copy even a single chunk.
    column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    values = (
        np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]] if offsets[-1] else np.empty(0, "u1")
    )
    return values.reshape(-1, sampling.frames, input_size_px, input_size_px, 3)


def _starts(bytes_per_video: Sequence[int], videos_per_block: int) -> list[int]:
    """Byte offsets in the shared memory at which the pixels of each input size start."""
    return [videos_per_block * sum(bytes_per_video[:number]) for number in range(len(bytes_per_video))]


def _block(
    rows: list[dict[str, Any]],
    pixels: SharedPixels,
    bytes_per_video: Sequence[int],
    input_sizes_px: Sequence[int],
    videos_per_block: int,
) -> pa.Table:
    table = pa.Table.from_pylist(rows, schema=ROW)
    decoded = np.array([row.get("positions") is not None for row in rows])
    valid = pa.py_buffer(np.packbits(decoded, bitorder="little"))
    starts = _starts(bytes_per_video, videos_per_block)
    for input_size_px, num_bytes, start in zip(input_sizes_px, bytes_per_video, starts, strict=True):
        offsets = np.concatenate([[0], np.cumsum(decoded)]).astype(np.int64) * num_bytes
        values = pa.py_buffer(memoryview(pixels.memory)[start : start + int(offsets[-1])])
        column = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(rows), [valid, pa.py_buffer(offsets), values], int((~decoded).sum())
        )
        table = table.append_column(pixels_column(input_size_px), column)
    return table
