"""Clip sets and masks: drawn anew in every epoch, on the device where they are used.

The draws are a function of (seed, epoch, video) by integer hashing instead of a generator with a
state, so that they are equal on CPU and GPU, for any number of workers and after any restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scale_ray.config import Sets

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed 64-bit number
_FIRST = -4658895280553007687  # the two multipliers of the splitmix64 finaliser
_SECOND = -7723592293110705685


@dataclass(frozen=True)
class ClipSets:
    """Two disjoint clip sets of each of B videos: the first sets of all, then the second ones.

    `clips_SV` int64 (2B, V) indexes the stored clips of a video; `masked_SV` bool (2B, V).
    """

    clips_SV: Tensor
    masked_SV: Tensor


def video_keys(video_ids: Sequence[str]) -> Tensor:
    """A 64-bit number for every id, int64 (videos,): the video's part in every draw."""
    digests = (hashlib.blake2b(video_id.encode(), digest_size=8).digest() for video_id in video_ids)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)


def draw_sets(keys_B: Tensor, num_clips: int, options: Sets, *, seed: int, epoch: int) -> ClipSets:
    """Draw 2V of a video's clips without replacement, split them in two sets, and mask some.

    `num_clips` must be at least twice the set size V. Each clip of a set is masked independently with
    probability `mask_ratio`; or `masked_clips` of them, any of them equally likely.
    """
    size = options.set_size
    assert num_clips >= 2 * size
    chosen = draw_clips(keys_B, num_clips, 2 * size, seed=seed, epoch=epoch)
    numbers_SV = _first_then_second(_numbers(_stream(keys_B, seed, epoch), num_clips, 2 * size))
    if options.masked_clips is None:
        masked_SV = _uniform(numbers_SV) < options.mask_ratio
    else:
        masked_SV = numbers_SV.argsort(dim=1).argsort(dim=1) < options.masked_clips
    return ClipSets(_first_then_second(chosen), masked_SV)


def draw_clips(keys_B: Tensor, num_clips: int, count: int, *, seed: int, epoch: int) -> Tensor:
    """Draw `count` of a video's clips without replacement: indices, int64 (B, count)."""
    lots_BN = _numbers(_stream(keys_B, seed, epoch), 0, num_clips)
    return lots_BN.argsort(dim=1)[:, :count]


def shuffled(num_videos: int, *, seed: int, epoch: int, window: int = 0) -> Tensor:
    """The order of the videos in an epoch, or in a window of one, int64 (videos,); the same on every worker."""
    return _numbers(_stream(torch.tensor([-1 - window]), seed, epoch), 0, num_videos)[0].argsort()


def dropout_seed(*, seed: int, step: int, worker: int, part: int) -> int:
    """A seed of its own for every step, worker and part of a batch: no random state has to be saved."""
    return int(_mixed(_stream(torch.tensor([worker]), seed, step) + part))


def normalised_positions(positions: Tensor) -> Tensor:
    """Positions (videos, clips, 7) for the model: y, x and t of each video shifted and scaled to [0, 1].

    Per video, the smallest start over its clips becomes 0 and the largest end 1; where all clips start
    and end alike the range is 1 wide. `flip` stays 1 or -1.
    """
    flip, starts, ends = (
        positions[..., :1],
        positions[..., [1, 2, 5]],
        positions[..., [3, 4, 6]],
    )
    low = starts.amin(1, keepdim=True)
    extent = ends.amax(1, keepdim=True) - low
    extent = torch.where(extent > 0, extent, torch.ones_like(extent))
    starts, ends = (starts - low) / extent, (ends - low) / extent
    return torch.cat([flip, starts[..., :2], ends[..., :2], starts[..., 2:], ends[..., 2:]], -1)


def _first_then_second(drawn_B2V: Tensor) -> Tensor:
    first, second = drawn_B2V.chunk(2, dim=1)
    return torch.cat([first, second])


def _stream(keys: Tensor, seed: int, epoch: int) -> Tensor:
    return _mixed(_mixed(keys + seed * _GOLDEN % 2**63) + (epoch + 1) * _GOLDEN % 2**63)


def _numbers(streams: Tensor, start: int, count: int) -> Tensor:
    """Pseudo-random int64 (streams, count): numbers `start` onwards of each stream."""
    counters = torch.arange(start + 1, start + count + 1, device=streams.device)
    return _mixed(streams[:, None] + counters * _GOLDEN)


def _uniform(numbers: Tensor) -> Tensor:
    """float32 in [0, 1), exactly the same on every device."""
    return (_shifted(numbers, 40) & 0xFFFFFF).float() / 2**24


def _mixed(x: Tensor) -> Tensor:
    """The splitmix64 finaliser; int64 products wrap around."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
