"""Which official layout a corpus has: its lists found inside or beside the videos, and read."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pyarrow import fs

from scale_ray.corpus.layouts import LAYOUTS, Layout, Reading
from scale_ray.errors import UserError
from scale_ray.locations import REQUESTS_AT_ONCE, filesystem_of, is_uri, join, parent, read_bytes, without_options

# What a layout takes for a video; lists, archives and read-me files lie in the same folders.
_VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)


@dataclass(frozen=True)
class Recognised:
    """The layout of a corpus: the data set's name, where its lists are (for messages), and what they say."""

    title: str
    where: str
    reading: Reading


def read_layout(name: str, root: str, ids: Sequence[str], annotations: str | None) -> Recognised | None:
    """What the official lists of layout `name` say of the videos of a corpus; None: it is a plain folder.

    `ids` are the files, relative to the location `root`. The lists are looked for in `annotations`, or
    else inside `root` and beside it. Lists that nobody asked for have to name more than half of the
    videos, since those of another corpus may lie beside it.

    Raises
    ------
    UserError
        Where a layout or `annotations` is given and its lists are not there, are no such lists or name
        no video of the corpus; where lists that nobody asked for name some of the videos, but not half.
    """
    if name == "folder":
        if annotations is not None:
            raise UserError(f"annotations: expected none with layout folder, found {annotations}")
        return None
    asked = name != "auto" or annotations is not None
    candidates = list(LAYOUTS.values()) if name == "auto" else [LAYOUTS[name]]
    ids = [video_id for video_id in ids if posixpath.splitext(video_id)[1].lower() in _VIDEO_SUFFIXES]
    found = _found(candidates, root, ids, annotations)
    best = max(found, key=lambda one: one.reading.num_listed, default=None)
    if best is not None:
        listed, count = best.reading.num_listed, len(ids)
        if listed * 2 > count or (listed and asked):
            return best
        if asked or listed:
            hint = "" if asked else "; --layout says whether they count"
            raise UserError(
                f"expected the videos of the {best.title} lists in {best.where}, "
                f"found {listed} of {count} videos named there{hint}"
            )
    elif asked:
        wanted = ", ".join(f"{layout.example} ({layout.title})" for layout in candidates)
        raise UserError(f"expected {wanted} in {annotations or f'{root} or beside it'}, found none")
    return None


def _found(candidates: Sequence[Layout], root: str, ids: Sequence[str], annotations: str | None) -> list[Recognised]:
    """Every layout whose lists are there, read."""
    bases: list[str | None] = [root, parent(root)]
    file = None
    if annotations is not None:
        filesystem, path = filesystem_of(annotations)
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.NotFound:
            raise UserError(f"annotations: expected a folder or file of official lists, found nothing at {annotations}")
        bases = [annotations]
        file = (
            (parent(annotations) or "", [posixpath.basename(without_options(path))])
            if kind == fs.FileType.File
            else None
        )
    entries = functools.cache(_entries)
    found = []
    for layout in candidates:
        for folder, files in [file] if file else _usual_places(bases, layout.folders, entries):
            texts = _texts_of(folder, [name for name in files if re.fullmatch(layout.lists, name)])
            texts = {name: text for name, text in texts.items() if layout.recognises(text)}
            if texts:
                found.append(Recognised(layout.title, _shown(folder), layout.read(ids, texts)))
                break
    return found


def _shown(location: str) -> str:
    """A location for messages: a URI without its options and without keys before the bucket."""
    return re.sub("://[^/]*@", "://", without_options(location)) if is_uri(location) else location


_Entries = tuple[list[str], list[str]]


def _usual_places(
    bases: Sequence[str | None], names: Sequence[str], entries: Callable[[str], _Entries]
) -> Iterator[tuple[str, list[str]]]:
    """The folders there are of those that lists are usually in, with the names of their files."""
    for base in bases:
        if base is not None:
            files, folders = entries(base)
            yield base, files
            for folder in (join(base, name) for name in names if name in folders):
                yield folder, entries(folder)[0]


def _entries(folder: str) -> _Entries:
    """The names of the files and of the folders right below a folder; none where it cannot be listed."""
    try:
        filesystem, path = filesystem_of(folder)
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except Exception:  # noqa: BLE001 - nobody promised that the folder above a corpus can be listed
        return [], []
    files = sorted(info.base_name for info in infos if info.type == fs.FileType.File)
    return files, [info.base_name for info in infos if info.type == fs.FileType.Directory]


def _texts_of(folder: str, names: Sequence[str]) -> dict[str, str]:
    def text_of(name: str) -> str:
        try:
            return read_bytes(join(folder, name)).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{join(folder, name)}: expected a text in UTF-8, found {error}") from error

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return dict(zip(names, pool.map(text_of, names), strict=True))
