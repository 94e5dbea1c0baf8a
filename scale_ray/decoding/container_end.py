"""Where a container says that it ends: whether a file lost its end, or goes on with a second video.

FFmpeg does not tell either: it reads what is there. Only containers that state their size in bytes are understood here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_RIFF, _AVI, _AVI_CONTINUED = b"RIFF", b"AVI ", b"AVIX"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_FLV, _FLV_TAGS = b"FLV", (8, 9, 18)
# Enough for the first elements of Matroska and, nearly always, for the properties of ASF.
_BEGINNING_BYTES = 4096


@dataclass(frozen=True)
class ContainerEnd:
    """What the structure of a file says about its end.

    `is_whole`: whether all bytes that the container announces are there; None if it does not announce how many.
    `is_joined`: whether another container of the same kind begins where the first one ends.
    """

    is_whole: bool | None = None
    is_joined: bool = False


def read_container_end(file: IO[bytes]) -> ContainerEnd:
    """Compare the size that a container states with that of its file; `file` is left at its beginning."""
    beginning = file.read(_BEGINNING_BYTES)
    file.seek(0)
    if not beginning.startswith((_EBML, _RIFF, _ASF, _FLV)):
        return ContainerEnd()  # without looking for the end, which costs a request if the file is remote
    size = file.seek(0, os.SEEK_END)
    try:
        if beginning.startswith(_EBML):
            return _at(file, _end_of_matroska(beginning), size, _EBML)
        if beginning.startswith(_RIFF):
            return _at(file, _end_of_avi(file, size), size, _RIFF)
        if beginning.startswith(_ASF):
            return _at(file, _end_of_asf(beginning), size, _ASF)
        return ContainerEnd(is_whole=_ends_with_a_tag(file, size))
    finally:
        file.seek(0)


def _at(file: IO[bytes], end: int | None, size: int, magic: bytes) -> ContainerEnd:
    if end is None:
        return ContainerEnd()
    return ContainerEnd(is_whole=end <= size, is_joined=end < size and _read(file, end, len(magic)) == magic)


def _read(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _end_of_matroska(beginning: bytes) -> int | None:
    """The end of the segment; None if its size is not stated, as in a live recording."""
    header_size, offset = _ebml_size(beginning, len(_EBML))
    segment = offset + (header_size or 0)
    if beginning[segment : segment + 4] != _SEGMENT:
        return None
    segment_size, offset = _ebml_size(beginning, segment + len(_SEGMENT))
    return None if segment_size is None else offset + segment_size


def _ebml_size(data: bytes, offset: int) -> tuple[int | None, int]:
    """A size of variable length and the offset behind it; None for an unknown size, whose bits are all 1."""
    first = data[offset] if offset < len(data) else 0
    length = 9 - first.bit_length()
    if not 1 <= length <= 8:
        return None, offset
    value = int.from_bytes(data[offset : offset + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), offset + length


def _end_of_avi(file: IO[bytes], size: int) -> int | None:
    """The end of the last chunk of one AVI file; long files consist of several chunks."""
    end = 0
    while end + 12 <= size:
        header = _read(file, end, 12)
        if header[:4] != _RIFF or header[8:] != (_AVI_CONTINUED if end else _AVI):
            return end or None
        chunk = int.from_bytes(header[4:8], "little")
        if not 4 <= chunk < 2**32 - 1:  # not stated: the recording was interrupted
            return None
        end += 8 + chunk + chunk % 2
    return end


def _end_of_asf(beginning: bytes) -> int | None:
    at = beginning.find(_ASF_PROPERTIES)
    stated = beginning[at + 40 : at + 48]  # after the object's id and size, and the file's id
    return int.from_bytes(stated, "little") or None if at >= 0 and len(stated) == 8 else None


def _ends_with_a_tag(file: IO[bytes], size: int) -> bool | None:
    """Whether the last tag of an FLV file is complete: behind each tag stands its size."""
    if size < 28:
        return None
    last = int.from_bytes(_read(file, size - 4, 4), "big")
    if not 11 <= last <= size - 17:
        return False
    tag = _read(file, size - 4 - last, 4)
    return tag[0] & 0x1F in _FLV_TAGS and int.from_bytes(tag[1:], "big") == last - 11
