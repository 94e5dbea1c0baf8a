"""The contents of a corpus, summarised from the headers of its files without decoding them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scale_ray.corpus import Corpus
from scale_ray.inspection.headers import Header, Unreadable

# At most this many unreadable files are listed by name in the text; the JSON lists all.
_UNREADABLE_SHOWN = 20
# At most this many sizes, codecs, classes and so on are listed by name.
_KINDS_SHOWN = 4


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of some values."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of the values that are not None; None if there are none."""
        known = [value for value in values if value is not None]
        return cls(min(known), statistics.median(known), max(known)) if known else None

    def __str__(self) -> str:
        if self.min == self.max:
            return f"all {self.median:.4g}"
        return f"{self.min:.4g} to {self.max:.4g}, median {self.median:.4g}"


@dataclass(frozen=True)
class CorpusFacts:
    """Statistics of the files of a corpus.

    `containers`, `codecs`, `sizes`, `fps` and `duration_s` describe the readable files among the `num_opened` ones;
    `num_readable` and `hours` are scaled up to all `num_files`. `size_bytes` excludes the `num_size_unknown` files,
    `hours` the `num_length_unknown` videos. `splits` counts the videos per subset of every split, `labels` the
    videos per class.
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
        """Number of files that each opened file represents."""
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
        unknown = f"; {self.num_length_unknown} of unknown length" * bool(self.num_length_unknown)
        lines += [
            f"  length      {self.duration_s or 'unknown'} s{unknown}",
            f"  containers  {_most_frequent(self.containers)}",
            f"  codecs      {_most_frequent(self.codecs)}",
            f"  sizes       {_most_frequent(self.sizes)}{self._size_range()}",
            f"  frame rate  {self.fps or 'unknown'} frames/s",
        ]
        if self.labels:
            without = self.num_files - self.num_labelled
            lines.append(
                f"  classes     {len(self.labels)}: {_most_frequent(self.labels)}"
                + f"; {without} files without" * bool(without)
            )
        elif self.targets is None:
            lines.append("  classes     no labels")
        if self.targets is not None:
            lines.append(f"  targets     {self.targets}")
        for name, subsets in self.splits.items():
            lines.append(f"  split       {name}: {_most_frequent(subsets)}")
        lines[-1] += f" ({self.split_note})"
        if self.unreadable:
            lines.append(f"  unreadable  {len(self.unreadable)} of {self.num_opened} files opened")
            lines += [
                f"    {file.video_id} ({file.stage}: {file.reason})" for file in self.unreadable[:_UNREADABLE_SHOWN]
            ]
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


def facts_of_corpus(corpus: Corpus, headers: Sequence[Header], unreadable: Sequence[Unreadable]) -> CorpusFacts:
    """Summarise the metadata of all files, and the headers of the files that were opened."""
    videos = corpus.videos
    num_opened = len(headers) + len(unreadable)
    assert 0 < num_opened <= len(videos)
    scale = len(videos) / num_opened
    # Several videos may be segments of one file.
    files = videos.select(["path", "size_bytes"]).group_by("path").aggregate([("size_bytes", "max")])
    sizes_bytes = files["size_bytes_max"].drop_null().to_pylist()
    known_s = [header.duration_s for header in headers if header.duration_s is not None]
    label_columns = zip(videos["label"].to_pylist(), videos["labels"].to_pylist(), strict=True)
    labels_per_video = [[label] if label is not None else (labels or []) for label, labels in label_columns]
    splits: dict[str, Counter[str]] = {name: Counter() for name in corpus.split_names}
    for video_splits in videos["splits"].to_pylist():
        for name, subset in video_splits:
            splits[name][subset] += 1
    return CorpusFacts(
        source=corpus.source,
        split_note=corpus.split_note,
        num_files=len(videos),
        num_opened=num_opened,
        num_readable=round(len(headers) * scale),
        unreadable=list(unreadable),
        size_bytes=sum(sizes_bytes),
        num_size_unknown=len(files) - len(sizes_bytes),
        hours=sum(known_s) * scale / 3600,
        num_length_unknown=len(headers) - len(known_s),
        containers=_counted(header.container for header in headers),
        codecs=_counted(header.codec for header in headers),
        sizes=_counted(f"{header.width_px}x{header.height_px}" for header in headers),
        fps=Spread.of(header.fps for header in headers),
        duration_s=Spread.of(known_s),
        labels=_counted(label for labels in labels_per_video for label in labels),
        num_labelled=sum(bool(labels) for labels in labels_per_video),
        targets=Spread.of(videos["target"].to_pylist()),
        splits={name: _counted(subsets.elements()) for name, subsets in splits.items()},
    )


def _counted(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs: most frequent first, ties in alphabetical order."""
    return dict(sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0])))


def _most_frequent(counts: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:_KINDS_SHOWN]]
    more = len(counts) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more else "")
