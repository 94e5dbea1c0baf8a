"""Reads a corpus from a folder, a glob or a manifest: the ids, paths, labels, groups and splits of its videos."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import glob_translate
from pyarrow import fs

from scale_ray.config import CorpusOptions
from scale_ray.corpus.annotations import RecognisedLayout, read_layout
from scale_ray.corpus.columns import VIDEO_COLUMNS, Listing, videos_table
from scale_ray.corpus.layouts import VideoAnnotation
from scale_ray.corpus.local_files import LocalFiles
from scale_ray.corpus.manifests import MANIFEST_SUFFIXES, read_manifest
from scale_ray.corpus.splits import DEFAULT_SPLIT, Splits, check_groups, counted, hashed_splits, notes_on_files
from scale_ray.corpus.subset_folders import notes_on_classes, read_subset_folders
from scale_ray.errors import UserError
from scale_ray.files.locations import (
    absolute,
    filesystem_of,
    first_answer,
    info_of,
    is_uri,
    join,
    list_files,
    options_of,
    server_of,
    showable,
    with_options_of,
    without_options,
)

_DEFAULTS = CorpusOptions()


@dataclass(frozen=True)
class Corpus:
    """The videos of one source.

    `videos` has one row per video, sorted by `video_id`, with the columns `video_id`, `path`, `size_bytes` (null if
    the file does not exist or its size is not known before it is opened), `start_s` and `end_s` (of a segment of its
    file, null for the whole file; `end_s` null up to the end), `label`, `labels` (of a multi-label corpus),
    `target` (a number to predict) and `group`, all null if unknown; `splits` (split name -> train, validation or test;
    no entry for a split that the video is not in), and the additional columns of a manifest.
    `split_names` are sorted: `default` if there is a split without a name, otherwise as they were given.
    `split_note` describes where the splits come from; `notes` are lines on what was read otherwise than it may seem.
    `unreachable` says why a server of a manifest's files could not be reached, by server.
    Paths are without options, which can hold keys: a file is opened at `opened_at(path)`.
    """

    source: str
    videos: pa.Table
    split_names: tuple[str, ...]
    split_note: str
    notes: tuple[str, ...] = ()
    unreachable: Mapping[str, str] = field(default_factory=dict)

    def opened_at(self, path: str) -> str:
        """The location at which a video is opened: with the options of the source, if it is in the same bucket."""
        return with_options_of(path, self.source)

    def check_reachable(self, paths: Iterable[str]) -> None:
        """Check that some of these files are local or on a server that could be reached; none are no error.

        Raises
        ------
        UserError
            If all of them are on servers that could not be reached.
        """
        if not self.unreachable:
            return
        servers = {server_of(path) if is_uri(path) else "" for path in paths}
        if servers and servers <= self.unreachable.keys():
            server = min(servers)
            raise UserError(f"expected to reach {showable(server)}, found: {self.unreachable[server]}")


def read_corpus(source: str, options: CorpusOptions = _DEFAULTS, *, excluded_folder: str | None = None) -> Corpus:
    """List the videos of a folder (one subfolder per class, or an official layout), a glob or a manifest.

    A plain folder may have its classes in `train`, `val` and `test`, which are then the splits.
    Every file of a plain folder is listed, except hidden ones; a file that is not a video is reported when it is
    opened. `excluded_folder` is a folder inside the source that is skipped, such as the feature store. In a URI the
    wildcards are `*`, `**` and `[...]`; `?` is none, because it begins the options of the URI.

    A manifest is a CSV or Parquet file with a column `path` (absolute, a URI, or relative to the folder of the
    manifest). Optional columns: `video_id` or `id`, `label`, `labels` (a list; in CSV separated by `|` or `;`),
    `target`, `group`, `split`, `split_NAME`, `size_bytes`, and `start_s` and `end_s` of a segment.

    Raises
    ------
    UserError
        If there is no video, the lists of a layout are missing, a manifest is invalid, a video occurs twice,
        or a group is in two subsets of one split; if the server of the source does not answer.
    """
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"expected a location in UTF-8, found {source!r}") from error
    if without_options(source).lower().endswith(MANIFEST_SUFFIXES) and not _is_glob(source):
        if options.layout != "auto" or options.annotations is not None:
            raise UserError(f"layout, annotations: expected a folder or a glob with them, found the manifest {source}")
        listing = read_manifest(source)
    else:
        listing = _from_folder(source, options, excluded_folder)
    videos = listing.videos
    ids, groups = videos["video_id"], videos["group"]
    counts = ids.value_counts()
    if len(counts) < len(ids):
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise UserError(f"expected every video once, found {repeated!r} more than once in {source}")
    splits, note = _complete_splits(listing, options.test_share)
    notes = listing.notes
    if listing.files is None:
        check_groups(source, groups, splits)
    else:
        hint = "; the rows of a file are a group, if some are segments and the column 'group' does not name another"
        check_groups(source, groups, splits, hint)
        notes = notes + notes_on_files(listing.files, splits)
    if options.id_prefix:
        ids, groups = (pc.binary_join_element_wise(options.id_prefix, column, "/") for column in (ids, groups))
        videos = videos.set_column(videos.column_names.index("video_id"), "video_id", ids)
        videos = videos.set_column(videos.column_names.index("group"), "group", groups)
    videos = videos.add_column(VIDEO_COLUMNS.names.index("splits"), "splits", splits.to_maps())
    names = tuple(sorted(splits.names))
    return Corpus(source, videos.sort_by("video_id"), names, note, tuple(notes), listing.unreachable)


def _complete_splits(listing: Listing, test_share: float) -> tuple[Splits, str]:
    """The splits of a source, drawn if it has none, and the note on where they come from."""
    videos, splits, note, *_ = listing
    if splits.names:
        return splits, note + counted(splits.num_without, "video in no split", "videos in no split")
    labelled = np.zeros(len(videos), bool)
    for name in ("label", "labels", "target"):
        labelled |= np.asarray(videos[name].is_valid())
    if not labelled.any():
        drawn = np.zeros((len(videos), 1), np.int8)
        return Splits((DEFAULT_SPLIT,), drawn), "no labels: all videos are training videos"
    keys = pc.coalesce(videos["group"], videos["video_id"]).to_pylist()
    unit = "group" if videos["group"].null_count < len(videos) else "video"
    fractions = f"about {1 - test_share:.0%} train and {test_share:.0%} test".replace("%", " %")
    drawn = hashed_splits(keys, labelled, test_share)
    return Splits((DEFAULT_SPLIT,), drawn), f"no split given: {fractions} by a hash of the {unit}"


def _from_folder(source: str, options: CorpusOptions, excluded_folder: str | None) -> Listing:
    """The videos of a folder or glob, labelled by its official lists, otherwise by its subfolders."""
    root, sizes, notes = (_matching_files if _is_glob(source) else _files)(source, excluded_folder)
    if not sizes:
        result = "no file that matches" if _is_glob(source) else "an empty folder at"
        raise UserError(f"expected videos, found {result} {source}")
    ids = list(sizes)
    layout = read_layout(options.layout, root, ids, options.annotations)
    entries: Mapping[str, VideoAnnotation] | None = None
    note = ""
    if layout is not None:
        entries, note = layout.content.videos, _note_on(layout)
    elif subsets := read_subset_folders(ids):
        entries, note = subsets
    if entries is None:
        labels: list[str | None] = [posixpath.dirname(video_id) or None for video_id in ids]
        groups, splits = None, Splits.of([{}] * len(ids))
        notes = notes + notes_on_classes(set(labels))
    else:
        ids = list(entries)
        labels = [entry.label for entry in entries.values()]
        groups = [entry.group for entry in entries.values()]
        splits = Splits.of([entry.splits for entry in entries.values()])
    num_bytes = [sizes[video_id] for video_id in ids]
    paths = _paths_below(root, ids)
    videos = videos_table(len(ids), video_id=ids, path=paths, size_bytes=num_bytes, label=labels, group=groups)
    return Listing(videos, splits, note, notes, {})


def _paths_below(root: str, ids: Sequence[str]) -> list[str]:
    """The locations of files below a folder, without its options."""
    root = root.removesuffix(options_of(root))
    if not is_uri(root):
        prefix = root.rstrip("/") + "/"
        return [prefix + video_id for video_id in ids]
    return [join(root, video_id) for video_id in ids]


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
    filesystem, root, kind = first_answer(_opened, folder)
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


def _opened(folder: str) -> tuple[fs.FileSystem, str, fs.FileType]:
    """The file system of a location, the path in it, and what is there."""
    filesystem, root = filesystem_of(folder)
    return filesystem, root, info_of(filesystem, root).type


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
