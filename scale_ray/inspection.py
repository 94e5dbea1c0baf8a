"""What is in a corpus, from the headers of its files: opened, not decoded."""

from __future__ import annotations

import os
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import av
import av.error

from scale_ray.config import Extraction
from scale_ray.corpus import Corpus
from scale_ray.decoder_process import Decoder, source_of
from scale_ray.errors import VideoError
from scale_ray.frames import opened, rate_of, told_duration_s, video_stream
from scale_ray.locations import REQUESTS_AT_ONCE, is_uri
from scale_ray.progress import Progress

# As many unreadable files are listed by name in the text; the JSON holds all.
_UNREADABLE_SHOWN = 20
# As many kinds are named of sizes, codecs, classes and the like.
_KINDS_SHOWN = 4


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


@dataclass(frozen=True)
class Spread:
    """Least, middle and largest of some values."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None where no value is known."""
        known = [value for value in values if value is not None]
        return cls(min(known), statistics.median(known), max(known)) if known else None

    def __str__(self) -> str:
        if self.min == self.max:
            return f"all {self.median:.4g}"
        return f"{self.min:.4g} to {self.max:.4g}, median {self.median:.4g}"


@dataclass(frozen=True)
class CorpusFacts:
    """The files of a corpus, counted.

    `containers`, `codecs`, `sizes`, `fps` and `duration_s` are of the readable among the `num_opened` files;
    `num_readable` and `hours` are scaled up to all `num_files`. `size_bytes` leaves out `num_size_unknown`
    files, `hours` the `num_length_unknown` videos. `splits` counts the sides of every split, `labels` the videos
    of every class.
    """

    source: str
    split_note: str
    num_files: int
    num_opened: int
    num_readable: int
    unreadable: list[Unreadable]
    size_bytes: int
    num_size_unknown: int
    hours: float
    num_length_unknown: int
    containers: dict[str, int]
    codecs: dict[str, int]
    sizes: dict[str, int]
    fps: Spread | None
    duration_s: Spread | None
    labels: dict[str, int]
    num_labelled: int
    targets: Spread | None
    splits: dict[str, dict[str, int]]

    @property
    def scale(self) -> float:
        """Files for each one that was opened."""
        return self.num_files / self.num_opened

    def lines(self) -> list[str]:
        all_opened = self.num_opened == self.num_files
        about = "" if all_opened else "about "
        size = f"{self.size_bytes / 2**20:,.1f} MiB" + f", {self.num_size_unknown} not known" * bool(
            self.num_size_unknown
        )
        lines = [
            f"{self.source}: {self.num_files} files ({size}), {about}{self.num_readable} readable videos of "
            f"{about}{self.hours:.3g} h"
        ]
        if not all_opened:
            lines.append(f"  opened      {self.num_opened} files drawn at random; videos and hours are scaled up")
        unknown = f"; {self.num_length_unknown} do not tell" * bool(self.num_length_unknown)
        lines += [
            f"  length      {self.duration_s or 'unknown'} s{unknown}",
            f"  containers  {_most(self.containers)}",
            f"  codecs      {_most(self.codecs)}",
            f"  sizes       {_most(self.sizes)}{self._size_range()}",
            f"  frame rate  {self.fps or 'unknown'} frames/s",
        ]
        if self.labels:
            without = self.num_files - self.num_labelled
            lines.append(
                f"  classes     {len(self.labels)}: {_most(self.labels)}" + f"; {without} files without" * bool(without)
            )
        elif self.targets is None:
            lines.append("  classes     no labels")
        if self.targets is not None:
            lines.append(f"  targets     {self.targets}")
        for name, sides in self.splits.items():
            lines.append(f"  split       {name}: {_most(sides)}")
        lines[-1] += f" ({self.split_note})"
        if self.unreadable:
            lines.append(f"  unreadable  {len(self.unreadable)} of {self.num_opened} files opened")
            lines += [f"    {u.video_id} ({u.stage}: {u.reason})" for u in self.unreadable[:_UNREADABLE_SHOWN]]
        if len(self.unreadable) > _UNREADABLE_SHOWN:
            lines.append(f"    and {len(self.unreadable) - _UNREADABLE_SHOWN} more: --json lists them all")
        return lines

    def _size_range(self) -> str:
        if len(self.sizes) < 2:
            return ""
        by_area = sorted(self.sizes, key=_area)
        return f"; from {by_area[0]} to {by_area[-1]}"


def _area(size: str) -> int:
    width, _, height = size.partition("x")
    return int(width) * int(height)


def chosen(corpus: Corpus, most: int, seed: int) -> list[dict[str, Any]]:
    """`video_id`, `path` and `splits` of all videos, or of `most` drawn at random, in the order of their ids."""
    rows = range(len(corpus.videos))
    taken = sorted(random.Random(seed).sample(rows, most)) if len(rows) > most else list(rows)
    return corpus.videos.select(["video_id", "path", "splits"]).take(taken).to_pylist()


def read_headers(
    rows: Sequence[dict[str, Any]], extraction: Extraction, *, quiet: bool = False
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
        Progress("headers", len(rows), "files", quiet=quiet) as progress,
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


def facts_of_corpus(corpus: Corpus, headers: Sequence[Header], unreadable: Sequence[Unreadable]) -> CorpusFacts:
    """Count what the corpus says of all files, and what the files say that were opened."""
    videos = corpus.videos
    num_opened = len(headers) + len(unreadable)
    assert 0 < num_opened <= len(videos)
    scale = len(videos) / num_opened
    sizes_bytes = [size for size in videos["size_bytes"].to_pylist() if size is not None]
    known_s = [header.duration_s for header in headers if header.duration_s is not None]
    single, multiple = videos["label"].to_pylist(), videos["labels"].to_pylist()
    of_each = [[one] if one is not None else (many or []) for one, many in zip(single, multiple, strict=True)]
    splits: dict[str, Counter[str]] = {name: Counter() for name in corpus.split_names}
    for sides in videos["splits"].to_pylist():
        for name, side in sides:
            splits[name][side] += 1
    return CorpusFacts(
        source=corpus.source,
        split_note=corpus.split_note,
        num_files=len(videos),
        num_opened=num_opened,
        num_readable=round(len(headers) * scale),
        unreadable=list(unreadable),
        size_bytes=sum(sizes_bytes),
        num_size_unknown=len(videos) - len(sizes_bytes),
        hours=sum(known_s) * scale / 3600,
        num_length_unknown=len(headers) - len(known_s),
        containers=_counted(header.container for header in headers),
        codecs=_counted(header.codec for header in headers),
        sizes=_counted(f"{header.width_px}x{header.height_px}" for header in headers),
        fps=Spread.of(header.fps for header in headers),
        duration_s=Spread.of(known_s),
        labels=_counted(label for labels in of_each for label in labels),
        num_labelled=sum(bool(labels) for labels in of_each),
        targets=Spread.of(videos["target"].to_pylist()),
        splits={name: _counted(sides.elements()) for name, sides in splits.items()},
    )


def _counted(values: Iterable[str]) -> dict[str, int]:
    """How often each occurs; the most frequent first, equal ones in the order of the alphabet."""
    return dict(sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0])))


def _most(counts: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:_KINDS_SHOWN]]
    more = len(counts) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more else "")
