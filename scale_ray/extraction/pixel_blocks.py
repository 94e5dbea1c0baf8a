"""Blocks of decoded videos: tables whose pixels stay where the decoder wrote them.

A row is a video. Its pixels are one binary value for each input side (`pixels_112`, uint8 (clips, frames,
112, 112, 3)); the values of a block lie one behind the other, so that a backbone can take batches that do
not depend on where a video ends. A video that could not be decoded is a row with a reason and no pixels.
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

    A block is complete with `videos_per_block` decoded videos; bad ones take no room in it.
    """
    if not videos:
        return
    sizes = [video_bytes(videos[0]["mode"], sampling, [side]) for side in input_sizes_px]
    rows: list[dict[str, Any]] = []
    pixels, num_decoded = _room(videos_per_block * sum(sizes)), 0
    for video in videos:
        starts = _starts(sizes, videos_per_block)
        offsets = tuple(start + num_decoded * size for start, size in zip(starts, sizes, strict=True))
        request = Request(video["path"], video["video_id"], video["mode"], sampling, tuple(input_sizes_px), offsets)
        row = {name: video[name] for name in ("video_id", "mode", "shard")}
        try:
            decoded = decoder.decode(request, pixels)
        except VideoError as error:
            rows.append(row | {"stage": error.stage, "reason": error.reason, "exception": error.exception})
            continue
        rows.append(row | {"positions": decoded.positions.tobytes(), **vars(decoded.geometry)})
        num_decoded += 1
        if num_decoded == videos_per_block:
            yield _block(rows, pixels, sizes, input_sizes_px, videos_per_block)
            rows, num_decoded = [], 0
            pixels = _room(videos_per_block * sum(sizes))
    if rows:
        yield _block(rows, pixels, sizes, input_sizes_px, videos_per_block)


# Kept from block to block and from task to task: fresh memory costs a page fault for every 4 KiB.
_rooms: list[SharedPixels] = []


def _room(num_bytes: int) -> SharedPixels:
    """Memory of this size: some that is not looked at any more, or else fresh."""
    _rooms[:] = [room for room in _rooms if room.num_bytes == num_bytes]
    for room in _rooms:
        if not room.in_use:
            return room
    _rooms.append(SharedPixels(num_bytes))
    return _rooms[-1]


def pixels_of(block: pa.Table, sampling: Sampling, input_size_px: int) -> np.ndarray:
    """The decoded clips of a block, without copying: uint8 (clips, frames, side, side, 3)."""
    chunks = block[pixels_column(input_size_px)].chunks
    # Not combine_chunks, which copies a single chunk, too.
    column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    values = (
        np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]] if offsets[-1] else np.empty(0, "u1")
    )
    return values.reshape(-1, sampling.frames, input_size_px, input_size_px, 3)


def _starts(sizes: Sequence[int], videos_per_block: int) -> list[int]:
    """Where in the shared memory the pixels of each side begin."""
    return [videos_per_block * sum(sizes[:number]) for number in range(len(sizes))]


def _block(
    rows: list[dict[str, Any]],
    pixels: SharedPixels,
    sizes: Sequence[int],
    input_sizes_px: Sequence[int],
    videos_per_block: int,
) -> pa.Table:
    table = pa.Table.from_pylist(rows, schema=ROW)
    decoded = np.array([row.get("positions") is not None for row in rows])
    valid = pa.py_buffer(np.packbits(decoded, bitorder="little"))
    for side, size, start in zip(input_sizes_px, sizes, _starts(sizes, videos_per_block), strict=True):
        offsets = np.concatenate([[0], np.cumsum(decoded)]).astype(np.int64) * size
        values = pa.py_buffer(memoryview(pixels.memory)[start : start + int(offsets[-1])])
        column = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(rows), [valid, pa.py_buffer(offsets), values], int((~decoded).sum())
        )
        table = table.append_column(pixels_column(side), column)
    return table
