"""Lists the files below a local folder, whatever names, links and permissions there are."""

from __future__ import annotations

import fnmatch
import heapq
import os
import re
from collections.abc import Sequence

from scale_ray.errors import UserError

# At most so many unreadable folders are named one by one.
_NAMED = 5
# The parts of a glob that the next name may match; the number of parts stands for a complete match.
_Places = frozenset[int]


class LocalFiles:
    """The files below a local folder whose relative path matches a glob, given as its parts between `/`.

    `sizes` are the sizes in bytes by relative path, None if a size cannot be read. Only folders that can hold a match
    are read; hidden files and folders, and the folder `excluded`, are left out. Every file is listed once: at its path
    without links, otherwise at the first one in sorted order. Bytes of a path that are not UTF-8 are escaped, as in
    `caf\\xe9.mp4`, since they cannot be stored; opening such a path fails.

    Raises
    ------
    UserError
        If the folder itself cannot be read.
    """

    def __init__(self, folder: str, pattern: Sequence[str] = ("**",), excluded: str | None = None) -> None:
        self.sizes: dict[str, int | None] = {}
        self._escaped: dict[str, int | None] = {}
        self._unreadable: list[str] = []
        self._num_repeated = 0
        self._num_others = 0
        self._parts = [(part == "**", re.compile(fnmatch.translate(part))) for part in pattern]
        self._excluded = os.path.realpath(excluded) if excluded else None
        self._seen_files: set[str] = set()
        self._seen_folders: set[tuple[str, _Places]] = set()
        # Relative path, with a final `/` if it leads to a folder; location; and places in the glob.
        self._links: list[tuple[str, str, _Places]] = []
        try:
            os.scandir(folder).close()
        except OSError as error:
            raise UserError(f"expected a folder that can be read, found {folder}: {error.strerror}") from error
        self._read_folders("", os.path.realpath(folder), self._with_skipped({0}))
        while self._links:  # in sorted order; a link may lead to further ones
            self._follow(*heapq.heappop(self._links))
        # A file may have the very name that stands for another one's bytes.
        self.sizes = dict(sorted({**self._escaped, **self.sizes}.items()))

    def notes(self) -> list[str]:
        """A line for the user on everything that is left out or cannot be opened."""
        unreadable = sorted(self._unreadable)
        notes = [f"left out a folder that cannot be read: {name}" for name in unreadable[:_NAMED]]
        if len(unreadable) > _NAMED:
            more = _number(len(unreadable) - _NAMED, "more folder", "more folders")
            notes.append(f"left out {more} that cannot be read")
        if self._escaped:
            files = _number(len(self._escaped), "file whose path is", "files whose paths are")
            notes.append(f"found {files} not UTF-8 and cannot be opened, such as {min(self._escaped)}")
        if self._num_repeated:
            links = _number(
                self._num_repeated, "link to a file or folder that is", "links to files or folders that are"
            )
            notes.append(f"left out {links} listed anyway")
        if self._num_others:
            others = _number(self._num_others, "entry that is no file", "entries that are no files")
            notes.append(f"left out {others}, such as a link to nothing")
        return notes

    def _read_folders(self, name: str, location: str, places: _Places) -> None:
        """List a folder and those below it; `name` is its relative path with a final `/`. Links are kept for later."""
        waiting = [(name, location, places)]
        while waiting:
            name, location, places = waiting.pop()
            if location == self._excluded:
                continue
            if (location, places) in self._seen_folders:
                self._num_repeated += 1
                continue
            self._seen_folders.add((location, places))
            try:
                with os.scandir(location) as entries:
                    for entry in entries:
                        inner = self._places_behind(entry.name, places)
                        if not inner or entry.name.startswith("."):
                            continue
                        if entry.is_symlink():
                            end = "/" if os.path.isdir(entry.path) else ""
                            heapq.heappush(self._links, (f"{name}{entry.name}{end}", entry.path, inner))
                        elif entry.is_dir(follow_symlinks=False):
                            waiting.append((f"{name}{entry.name}/", entry.path, inner))
                        elif len(self._parts) in inner:
                            is_file = entry.is_file(follow_symlinks=False)
                            self._add_file(name + entry.name, entry.path, is_file=is_file)
            except OSError as error:
                self._unreadable.append(f"{_printable(name)} ({error.strerror})")

    def _follow(self, name: str, link: str, places: _Places) -> None:
        location = os.path.realpath(link)
        if name.endswith("/"):
            self._read_folders(name, location, places)
        elif len(self._parts) in places:
            self._add_file(name, location, is_file=os.path.isfile(location))

    def _add_file(self, name: str, location: str, *, is_file: bool) -> None:
        if not is_file:
            self._num_others += 1
        elif location in self._seen_files:
            self._num_repeated += 1
        else:
            self._seen_files.add(location)
            printable = _printable(name)
            sizes = self.sizes if printable == name else self._escaped
            sizes[printable] = _size_of(location)

    def _places_behind(self, name: str, places: _Places) -> _Places:
        """The places in the glob behind one more name; none if the name does not match."""
        if len(self._parts) == 1 and self._parts[0][0]:
            return places  # `**` alone, as for every folder
        behind = set()
        for place in places - {len(self._parts)}:
            is_any, part = self._parts[place]
            if is_any:
                behind.add(place)
            elif part.match(name):
                behind.add(place + 1)
        return self._with_skipped(behind)

    def _with_skipped(self, places: set[int]) -> _Places:
        """These places and those behind each `**`, which also stands for no name."""
        for place in sorted(places):
            while place < len(self._parts) and self._parts[place][0]:
                place += 1
                places.add(place)
        return frozenset(places)


def _size_of(file: str) -> int | None:
    try:
        return os.path.getsize(file)
    except OSError:  # its folder can be listed, but not entered
        return None


def _number(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def _printable(path: str) -> str:
    """A path in which bytes that are not UTF-8 are escaped."""
    return path if path.isascii() else os.fsencode(path).decode(errors="backslashreplace")
