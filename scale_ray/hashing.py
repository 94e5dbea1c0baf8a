"""Hashes that depend on the key alone: equal on every machine and after every restart."""

from __future__ import annotations

import hashlib


def uniform_hash(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone: the draw behind random splits and selections of videos."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def part_of(key: str, num_parts: int) -> int:
    """The part of `num_parts`, from 1, that a key belongs to, whatever other keys there are.

    Hashed apart from `uniform_hash` of the key itself, by which splits are drawn: the test videos are in all parts.
    """
    return min(int(uniform_hash(f"part\0{key}") * num_parts), num_parts - 1) + 1


def digest(text: str) -> str:
    """20 hexadecimal digits that identify a text, for file names."""
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
