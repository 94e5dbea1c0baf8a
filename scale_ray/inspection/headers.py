"""The headers of a corpus's files: opened, not decoded."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import av
import av.error

from scale_ray.config import Extraction
from scale_ray.console import Console
from scale_ray.corpus import Corpus
from scale_ray.decoding import Decoder, opened, rate_of, source_of, told_duration_s, video_stream
from scale_ray.errors import VideoError
from scale_ray.locations import REQUESTS_AT_ONCE, is_uri


@dataclass(frozen=True)
class Header:
    """What a file says of its video: coded size in pixels; None for a length or rate that it does not tell."""

    video_id: str
    container: str
    codec: str
    width_px: int
    height_px: int
    fps: float | None
    duration_s: float | None


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be used, and the stage (`open` or `decode`) that found out."""

    video_id: str
    path: str
    stage: str
    reason: str


def chosen(corpus: Corpus, most: int, seed: int) -> list[dict[str, Any]]:
    """`video_id`, `path` and `splits` of all videos, or of `most` drawn at random, in the order of their ids."""
    rows = range(len(corpus.videos))
    taken = sorted(random.Random(seed).sample(rows, most)) if len(rows) > most else list(rows)
    return corpus.videos.select(["video_id", "path", "splits"]).take(taken).to_pylist()


def read_headers(
    rows: Sequence[dict[str, Any]], extraction: Extraction, console: Console
) -> tuple[list[Header], list[Unreadable]]:
    """The headers of files given as `video_id` and `path`, in the order of the ids.

    In child processes: a file that crashes or hangs FFmpeg is unreadable, and no more.
    """
    headers: list[Header] = []
    unreadable: list[Unreadable] = []
    remote = any(is_uri(row["path"]) for row in rows)
    at_once = min(REQUESTS_AT_ONCE if remote else min(os.cpu_count() or 1, 8), len(rows))
    idle: SimpleQueue[Decoder] = SimpleQueue()

    def read(row: dict[str, Any]) -> Header:
        decoder = idle.get()
        try:
            return decoder.call(header_of, row["video_id"], row["path"])
        finally:
            idle.put(decoder)

    with (
        console.progress("headers", len(rows), "files") as progress,
        ExitStack() as children,
        ThreadPoolExecutor(at_once) as threads,
    ):
        for _ in range(at_once):
            decoder = Decoder(timeout_s=extraction.decode_timeout_s, memory_gib=extraction.decode_memory_gib)
            idle.put(children.enter_context(decoder))
        under_way = {threads.submit(read, row): row for row in rows}
        for future in as_completed(under_way):
            row = under_way[future]
            try:
                headers.append(future.result())
            except VideoError as error:
                unreadable.append(Unreadable(row["video_id"], row["path"], error.stage, error.reason))
            progress.advance(1)
    return sorted(headers, key=lambda h: h.video_id), sorted(unreadable, key=lambda u: u.video_id)


def header_of(video_id: str, path: str) -> Header:
    """What the header of one file says.

    The length is that of the video stream, or else, as a container may tell no other, of the whole file.

    Raises
    ------
    VideoError
        Of stage `open`, where there is no video to read.
    """
    with opened(source_of(path)) as container:
        stream = video_stream(container)
        fps = rate_of(stream) or None
        duration_s = told_duration_s(stream)
        if duration_s is None and container.duration:
            duration_s = container.duration / av.time_base
        codec = stream.codec_context
        if not codec.width or not codec.height:
            raise VideoError("open", "the header tells no size")
        kind = container.format.long_name.partition(" (")[0]
        return Header(video_id, kind, codec.name, codec.width, codec.height, fps, duration_s)
