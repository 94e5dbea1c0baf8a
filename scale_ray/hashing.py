"""Hashes that stand in for random draws: a function of a key alone, equal on every machine."""

from __future__ import annotations

import hashlib


def hash_share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone: the draw behind every split of ours."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
