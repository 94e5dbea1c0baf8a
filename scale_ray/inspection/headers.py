"""Reads the headers of video files without decoding them."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import av.error

from scale_ray.config import Extraction
from scale_ray.console import Console
from scale_ray.corpus import Corpus
from scale_ray.decoding import (
    Decoder,
    as_source,
    display_size,
    frame_rate,
    header_length_s,
    open_video,
    packets_of,
    timing_of,
)
from scale_ray.errors import VideoError
from scale_ray.files.locations import is_uri
from scale_ray.files.requests import REQUESTS_AT_ONCE


@dataclass(frozen=True)
class Header:
    """The contents of a file's header; `fps` and `duration_s` are None if unknown. `start_s` and `end_s` of a segment.

    The size is that of the frame with square pixels, before it is turned: only decoded frames state their orientation.
    """

    video_id: str
    container: str
    codec: str
    width_px: int
    height_px: int
    fps: float | None
    duration_s: float | None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be used, with the stage (`open` or `decode`) that failed and the reason."""

    video_id: str
    path: str
    stage: str
    reason: str


def select_videos(corpus: Corpus, max_videos: int, seed: int) -> list[dict[str, Any]]:
    """Id, path, segment and splits of all videos or of `max_videos` drawn at random, in the order of their ids.

    The paths are those at which the files are opened.
    """
    rows = range(len(corpus.videos))
    drawn = sorted(random.Random(seed).sample(rows, max_videos)) if len(rows) > max_videos else list(rows)
    chosen = corpus.videos.select(["video_id", "path", "start_s", "end_s", "splits"]).take(drawn).to_pylist()
    return [{**row, "path": corpus.opened_at(row["path"])} for row in chosen]


def read_headers(
    rows: Sequence[dict[str, Any]], extraction: Extraction, console: Console
) -> tuple[list[Header], list[Unreadable]]:
    """Read the headers of files, given as rows with `video_id` and `path`; returns headers and failures, by id.

    Rows may have `start_s` and `end_s`: the duration is then that of the segment.

    Files are opened in child processes, so a file that makes FFmpeg crash or hang only counts as unreadable.
    """
    headers: list[Header] = []
    unreadable: list[Unreadable] = []
    remote = any(is_uri(row["path"]) for row in rows)
    num_decoders = min(REQUESTS_AT_ONCE if remote else min(os.cpu_count() or 1, 8), len(rows))
    idle: SimpleQueue[Decoder] = SimpleQueue()

    def read(row: dict[str, Any]) -> Header:
        decoder = idle.get()
        try:
            header = decoder.call(header_of, row["video_id"], row["path"])
            return _of_segment(header, row.get("start_s"), row.get("end_s"))
        finally:
            idle.put(decoder)

    with (
        console.progress("headers", len(rows), "files") as progress,
        ExitStack() as decoders,
        ThreadPoolExecutor(num_decoders) as threads,
    ):
        for _ in range(num_decoders):
            decoder = Decoder(timeout_s=extraction.decode_timeout_s, memory_gib=extraction.decode_memory_gib)
            idle.put(decoders.enter_context(decoder))
        pending = {threads.submit(read, row): row for row in rows}
        for future in as_completed(pending):
            row = pending[future]
            try:
                headers.append(future.result())
            except VideoError as error:
                unreadable.append(Unreadable(row["video_id"], row["path"], error.stage, error.reason))
            progress.advance(1)
    return sorted(headers, key=lambda header: header.video_id), sorted(unreadable, key=lambda file: file.video_id)


def _of_segment(header: Header, start_s: float | None, end_s: float | None) -> Header:
    """The header of a segment of a file."""
    if start_s is None:
        return header
    ends_s = [end for end in (header.duration_s, end_s) if end is not None]
    duration_s = max(min(ends_s) - start_s, 0.0) if ends_s else None
    return replace(header, duration_s=duration_s, start_s=start_s, end_s=end_s)


def header_of(video_id: str, path: str) -> Header:
    """Read the header of one file.

    The duration is that of the video stream or, if the container does not state it, that of the whole file. A stream
    without a header that states its length is read through.

    Raises
    ------
    VideoError
        If the file has no readable video (stage `open`), an encrypted one, or a raw stream without a frame rate.
    """
    with open_video(as_source(path)) as video:
        codec = video.stream.codec_context
        if not codec.width or not codec.height:
            raise VideoError("open", "the header does not state the frame size")
        fps, duration_s = frame_rate(video.stream), header_length_s(video)
        if duration_s is None:
            timing = timing_of(video)
            fps, duration_s = timing.fps, timing.length_s
        container_name = video.container.format.long_name.partition(" (")[0]
        with suppress(av.error.FFmpegError, OSError):  # damage after the header is found when decoding
            next(packets_of(video), None)  # whether packets are encrypted is stated in them
        height_px, width_px = display_size(video.stream, codec.height, codec.width)
        return Header(video_id, container_name, codec.name, width_px, height_px, fps or None, duration_s or None)
