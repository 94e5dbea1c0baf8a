"""Reads a corpus from a folder, a glob or a manifest: the ids, paths, labels, groups and splits of its videos."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from scale_ray.config import CorpusOptions
from scale_ray.corpus.annotations import RecognisedLayout, read_layout
from scale_ray.corpus.layouts import VideoAnnotation
from scale_ray.corpus.local_files import LocalFiles
from scale_ray.corpus.manifests import MANIFEST_SUFFIXES, Video, read_manifest
from scale_ray.corpus.splits import DEFAULT_SPLIT, check_groups, counted, hashed_splits
from scale_ray.corpus.subset_folders import notes_on_classes, read_subset_folders
from scale_ray.errors import UserError
from scale_ray.files.locations import (
    absolute,
    filesystem_of,
    is_uri,
    join,
    list_files,
    options_of,
    with_options_of,
    without_options,
)

_DEFAULTS = CorpusOptions()
# The columns that are known before a video is opened; the additional columns of a manifest follow them.
VIDEO_COLUMNS = pa.schema(
    [
        ("video_id", pa.string()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("label", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("target", pa.float64()),
        ("group", pa.string()),
        ("splits", pa.map_(pa.string(), pa.string())),
    ]
)


@dataclass(frozen=True)
class Corpus:
    """The videos of one source.

    `videos` has one row per video, sorted by `video_id`, with the columns `video_id`, `path`, `size_bytes` (null if
    the file does not exist or its size cannot be read), `label`, `labels` (of a multi-label corpus), `target` (a
    number to predict) and `group`, all null if unknown; `splits` (split name -> train, validation or test; no
    entry for a split that the video is not in), and the additional columns of a manifest.
    `split_note` describes where the splits come from; `notes` are lines on what was read otherwise than it may seem.
    Paths are without options, which can hold keys: a file is opened at `opened_at(path)`.
    """

    source: str
    videos: pa.Table
    split_note: str
    notes: tuple[str, ...] = ()

    @property
    def split_names(self) -> tuple[str, ...]:
        """The sorted names of the splits: `default` if there is one without a name, otherwise as they were given."""
        return tuple(sorted({name for splits in self.videos["splits"].to_pylist() for name, _ in splits}))

    def opened_at(self, path: str) -> str:
        """The location at which a video is opened: with the options of the source, if it is in the same bucket."""
        return with_options_of(path, self.source)


def read_corpus(source: str, options: CorpusOptions = _DEFAULTS, *, excluded_folder: str | None = None) -> Corpus:
    """List the videos of a folder (one subfolder per class, or an official layout), a glob or a manifest.

    A plain folder may have its classes in `train`, `val` and `test`, which are then the splits.
    Every file of a plain folder is listed, except hidden ones; a file that is not a video is reported when it is
    opened. `excluded_folder` is a folder inside the source that is skipped, such as the feature store. In a URI the
    wildcards are `*`, `**` and `[...]`; `?` is none, because it begins the options of the URI.

    A manifest is a CSV or Parquet file with a column `path` (absolute, a URI, or relative to the folder of the
    manifest). Optional columns: `video_id` or `id`, `label`, `labels` (a list; in CSV separated by `|` or `;`),
    `target`, `group`, `split` and `split_NAME`.

    Raises
    ------
    UserError
        If there is no video, the lists of a layout are missing, a manifest is invalid, a video occurs twice,
        or a group is in two subsets of one split.
    """
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"expected a location in UTF-8, found {source!r}") from error
    extra_columns: dict[str, pa.ChunkedArray] = {}
    notes: list[str] = []
    if without_options(source).lower().endswith(MANIFEST_SUFFIXES) and not _is_glob(source):
        if options.layout != "auto" or options.annotations is not None:
            raise UserError(f"layout, annotations: expected a folder or a glob with them, found the manifest {source}")
        videos, extra_columns, notes = read_manifest(source)
        note = "splits as given"
    else:
        videos, note, notes = _from_folder(source, options, excluded_folder)
    repeated = [video_id for video_id, count in Counter(video.video_id for video in videos).items() if count > 1]
    if repeated:
        raise UserError(f"expected every video once, found {repeated[0]!r} more than once in {source}")
    note = _complete_splits(videos, note, options.test_share)
    splits = [video.splits or {} for video in videos]
    check_groups(source, [video.group for video in videos], splits)
    prefix = f"{options.id_prefix}/" if options.id_prefix else ""
    rows = [
        {
            **vars(video),
            "path": video.path.removesuffix(options_of(video.path)),
            "video_id": prefix + video.video_id,
            "group": prefix + video.group if video.group is not None else None,
            "splits": list(subsets.items()),
        }
        for video, subsets in zip(videos, splits, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=VIDEO_COLUMNS)
    for name, values in extra_columns.items():
        table = table.append_column(name, values)
    return Corpus(source, table.sort_by("video_id"), note, tuple(notes))


def _complete_splits(videos: Sequence[Video], note: str, test_share: float) -> str:
    """Draw the splits of `videos` if the source has none; returns the note on where the splits come from."""
    if any(video.splits for video in videos):
        num_without = sum(not video.splits for video in videos)
        return note + counted(num_without, "video in no split", "videos in no split")
    labelled = [any(value is not None for value in (video.label, video.labels, video.target)) for video in videos]
    ids, groups = [video.video_id for video in videos], [video.group for video in videos]
    splits, note = hashed_splits(ids, groups, labelled, test_share)
    for video, subsets in zip(videos, splits, strict=True):
        video.splits = subsets
    return note


def _from_folder(
    source: str, options: CorpusOptions, excluded_folder: str | None
) -> tuple[list[Video], str, list[str]]:
    """The videos of a folder or glob, labelled by its official lists, otherwise by its subfolders.

    Returns them with a note on their splits, empty if they have none, and further notes for the user.
    """
    root, sizes, notes = (_matching_files if _is_glob(source) else _files)(source, excluded_folder)
    if not sizes:
        result = "no file that matches" if _is_glob(source) else "an empty folder at"
        raise UserError(f"expected videos, found {result} {source}")
    layout = read_layout(options.layout, root, list(sizes), options.annotations)
    if layout is not None:
        entries, note = layout.content.videos, _note_on(layout)
    elif subsets := read_subset_folders(list(sizes)):
        entries, note = subsets
    else:
        entries, note = {video_id: VideoAnnotation(posixpath.dirname(video_id) or None) for video_id in sizes}, ""
        notes = notes + notes_on_classes(entry.label for entry in entries.values())
    videos = [
        Video(
            video_id, join(root, video_id), sizes[video_id], entry.label, group=entry.group, splits=dict(entry.splits)
        )
        for video_id, entry in entries.items()
    ]
    return videos, note, notes


def _note_on(layout: RecognisedLayout) -> str:
    """Where the splits of an official layout come from, and what is missing."""
    names = sorted({name for entry in layout.content.videos.values() for name in entry.splits})
    description = "official split" + (
        "" if names == [DEFAULT_SPLIT] else f"{'s' * (len(names) > 1)} {', '.join(names)}"
    )
    note = f"{description} of {layout.title}, from {layout.shown_folder}"
    note += counted(layout.content.num_absent, "listed video is missing", "listed videos are missing")
    return note + counted(layout.content.num_left_out, "unlisted video left out", "unlisted videos left out")


class _Files(NamedTuple):
    """The absolute location of a folder, the sizes in bytes of the files below it, by relative path, and notes."""

    root: str
    sizes: dict[str, int | None]
    notes: list[str]


def _files(folder: str, excluded_folder: str | None) -> _Files:
    """All files below a folder, except hidden ones and those in `excluded_folder`."""
    filesystem, root = filesystem_of(folder)
    kind = filesystem.get_file_info(root).type
    if kind == fs.FileType.NotFound:
        raise UserError(f"expected a folder, a glob or a manifest of videos, found nothing at {folder}")
    if kind == fs.FileType.File:
        raise UserError(f"expected a folder, a glob or a manifest (.csv, .parquet), found the file {folder}")
    excluded_filesystem, excluded = filesystem_of(excluded_folder) if excluded_folder else (None, "")
    if isinstance(filesystem, fs.LocalFileSystem):
        is_local = isinstance(excluded_filesystem, fs.LocalFileSystem)
        files = LocalFiles(root, excluded=excluded if is_local else None)
        return _Files(absolute(folder), files.sizes, files.notes())
    below = excluded.rstrip("/") + "/" if excluded_folder else None
    sizes = {
        posixpath.relpath(file.path, root): file.size
        for file in list_files(folder)
        if not (below and file.path.startswith(below))
    }
    return _Files(absolute(folder), {name: size for name, size in sizes.items() if not _is_hidden(name)}, [])


def _matching_files(source: str, excluded_folder: str | None) -> _Files:
    """The files that match a glob, as in `_files`, below the folder before the first wildcard.

    Ids are relative to that folder, so that a narrower glob keeps them. A remote folder is listed as a whole,
    in requests of a thousand files; on local disk only the folders that match are listed.
    """
    location = absolute(source)
    pattern = without_options(location)
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if _has_wildcard(part))
    folder = "/".join(parts[:first]) or "/"
    if not is_uri(source):
        if not os.path.isdir(folder):
            return _Files(folder, {}, [])
        excluded = excluded_folder if excluded_folder and not is_uri(excluded_folder) else None
        matching = LocalFiles(folder, parts[first:], excluded)
        return _Files(folder, matching.sizes, matching.notes())
    try:
        matches = re.compile(glob_translate(unquote("/".join(parts[first:])))).fullmatch
    except ValueError as error:
        raise UserError(f"expected ** to stand alone between two / of a glob, found {source}") from error
    files = _files(folder + location[len(pattern) :], excluded_folder)
    return files._replace(sizes={name: size for name, size in files.sizes.items() if matches(name)})


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_glob(source: str) -> bool:
    return _has_wildcard(without_options(source)) and (is_uri(source) or not os.path.exists(source))


def _has_wildcard(text: str) -> bool:
    return any(character in text for character in "*?[")
