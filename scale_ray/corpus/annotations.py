"""Detection of official layouts: finds the lists of a data set inside or beside the videos, and reads them."""

from __future__ import annotations

import functools
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pyarrow import fs

from scale_ray.corpus.layouts import LAYOUTS, Annotations, Layout, video_ids
from scale_ray.errors import UserError
from scale_ray.files.locations import (
    filesystem_of,
    join,
    parent,
    read_bytes,
    showable,
    without_options,
)
from scale_ray.files.requests import REQUESTS_AT_ONCE


@dataclass(frozen=True)
class RecognisedLayout:
    """The official layout of a corpus: name of the data set, folder of its lists (for messages) and their content."""

    title: str
    shown_folder: str
    content: Annotations


def read_layout(name: str, root: str, ids: Sequence[str], annotations: str | None) -> RecognisedLayout | None:
    """Read the official lists of layout `name` for the videos of a corpus; returns None for a plain folder.

    `ids` are the paths of the files relative to the location `root`. The lists are looked for in `annotations`
    if it is given, otherwise inside `root` and beside it. If neither a layout nor `annotations` is given, the
    lists have to name more than half of the videos, since lists of another corpus may lie beside this one.

    Raises
    ------
    UserError
        If a layout or `annotations` is given and the lists are missing, of another format, or name no video
        of the corpus; if neither is given and the lists name some of the videos, but not more than half.
    """
    if name == "folder":
        if annotations is not None:
            raise UserError(f"annotations: expected none with layout folder, found {annotations}")
        return None
    is_requested = name != "auto" or annotations is not None
    candidates = list(LAYOUTS.values()) if name == "auto" else [LAYOUTS[name]]
    ids = video_ids(ids)
    recognised = _recognised_layouts(candidates, root, ids, annotations)
    best = max(recognised, key=lambda layout: layout.content.num_listed, default=None)
    if best is not None:
        num_listed, num_videos = best.content.num_listed, len(ids)
        if num_listed * 2 > num_videos or (num_listed and is_requested):
            return best
        if is_requested or num_listed:
            hint = "" if is_requested else "; use --layout to accept or ignore the lists"
            raise UserError(
                f"expected the videos of the {best.title} lists in {best.shown_folder}, "
                f"found {num_listed} of {num_videos} videos in these lists{hint}"
            )
    elif is_requested:
        examples = " or ".join(f"{layout.example} ({layout.title})" for layout in candidates)
        raise UserError(f"expected {examples} in {annotations or f'{root} or beside it'}, found none")
    return None


def _recognised_layouts(
    candidates: Sequence[Layout], root: str, ids: Sequence[str], annotations: str | None
) -> list[RecognisedLayout]:
    """The candidates whose lists exist, with their annotations."""
    bases: list[str | None] = [root, parent(root)]
    single_list = None
    if annotations is not None:
        filesystem, path = filesystem_of(annotations)
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.NotFound:
            raise UserError(f"annotations: expected a folder or file of official lists, found nothing at {annotations}")
        bases = [annotations]
        single_list = (
            (parent(annotations) or "", [posixpath.basename(without_options(path))])
            if kind == fs.FileType.File
            else None
        )
    entries = functools.cache(_entries)
    recognised = []
    for layout in candidates:
        for folder, files in [single_list] if single_list else _usual_folders(bases, layout.folders, entries):
            texts = _read_texts(folder, [name for name in files if re.fullmatch(layout.list_names, name)])
            texts = {name: text for name, text in texts.items() if layout.recognises(text)}
            if texts:
                recognised.append(RecognisedLayout(layout.title, showable(folder), layout.read(ids, texts)))
                break
    return recognised


_Entries = tuple[list[str], list[str]]


def _usual_folders(
    bases: Sequence[str | None], names: Sequence[str], entries: Callable[[str], _Entries]
) -> Iterator[tuple[str, list[str]]]:
    """The existing folders among those that usually hold the lists, each with the names of its files."""
    for base in bases:
        if base is not None:
            files, folders = entries(base)
            yield base, files
            for folder in (join(base, name) for name in names if name in folders):
                yield folder, entries(folder)[0]


def _entries(folder: str) -> _Entries:
    """The names of the files and of the subfolders in a folder; none if it cannot be listed."""
    try:
        filesystem, path = filesystem_of(folder)
        if isinstance(filesystem, fs.LocalFileSystem):
            # pyarrow cannot list a folder with a name that is not UTF-8.
            names = sorted(os.listdir(path))
            return (
                [name for name in names if os.path.isfile(f"{path}/{name}")],
                [name for name in names if os.path.isdir(f"{path}/{name}")],
            )
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except Exception:  # noqa: BLE001 - the folder above a corpus may be unreadable, with any error of its driver
        return [], []
    files = sorted(info.base_name for info in infos if info.type == fs.FileType.File)
    return files, [info.base_name for info in infos if info.type == fs.FileType.Directory]


def _read_texts(folder: str, names: Sequence[str]) -> dict[str, str]:
    def read_text(name: str) -> str:
        try:
            return read_bytes(join(folder, name)).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{join(folder, name)}: expected text in UTF-8, found {error}") from error

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return dict(zip(names, pool.map(read_text, names), strict=True))
