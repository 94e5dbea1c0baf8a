"""The stages of the stream without their work, for `driver.py`: a module of its own, since Ray's workers import it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scale_ray.config import Sampling
from scale_ray.decoding import video_bytes
from scale_ray.extraction import batch_column, features_column, without_pixels
from scale_ray.extraction.results import ROW, pixels_column
from scale_ray.store import GEOMETRY

CLIPS, WIDTH = 16, 512
GEOMETRY_OF_ALL = (240, 320, 10.0, 30.0)


def decode_nothing(
    block: pa.Table, *, sampling: Sampling, sizes_px: Mapping[str, Sequence[int]], per_block: int, **_: Any
) -> Iterator[pa.Table]:
    """Blocks of the size that decoded videos have, of zeros."""
    for start in range(0, len(block), per_block):
        part = block.slice(start, per_block)
        columns: dict[str, Any] = {name: part[name] for name in ("video_id", "mode", "shard")}
        columns["positions"] = [bytes(CLIPS * 7 * 4)] * len(part)
        columns["size_bytes"] = [1_000_000] * len(part)
        columns |= {name: [value] * len(part) for name, value in zip(GEOMETRY.names, GEOMETRY_OF_ALL, strict=True)}
        nothing = [None] * len(part)
        table = pa.table({field.name: pa.array(_list(columns.get(field.name, nothing)), field.type) for field in ROW})
        pixels = bytes(video_bytes("train", sampling, sizes_px["train"]))
        yield table.append_column(
            pixels_column(sizes_px["train"][0]), pa.array([pixels] * len(part), pa.large_binary())
        )


def _list(column: Any) -> list[Any]:
    return column if isinstance(column, list) else column.to_pylist()


class EmbedNothing:
    """An actor that returns the same features for every video."""

    def __init__(self, *_: Any, **__: Any) -> None:
        numbers = np.random.default_rng(0).standard_normal(CLIPS * WIDTH).astype(np.float16)
        self._features = numbers.tobytes()

    def __call__(self, block: pa.Table) -> pa.Table:
        kept = without_pixels(block)
        columns = {name: kept[name] for name in kept.column_names}
        columns[features_column(0)] = pa.array([self._features] * len(kept), pa.binary())
        columns[batch_column(0)] = pa.array([16] * len(kept), pa.int64())
        return pa.table(columns)
