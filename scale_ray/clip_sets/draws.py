"""Clip sets and masks: drawn anew in every epoch, on the device where they are used.

Each draw is an integer hash of (seed, epoch, video), not the output of a stateful generator. Draws are
therefore the same on CPU and GPU, for any number of workers and after any restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scale_ray.config import Sets

# Numbers of shuffles far behind those of the windows of a stream.
_WINDOW_OF_BLOCK, _WINDOW_OF_SHARD = 2**40, 2**41
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed 64-bit number
_MULTIPLIER_1 = -4658895280553007687  # the two multipliers of the splitmix64 finaliser
_MULTIPLIER_2 = -7723592293110705685


@dataclass(frozen=True)
class ClipSets:
    """Two disjoint clip sets per video, for B videos: the first sets of all videos, then the second sets.

    `clips_SV` int64 (2B, V) holds indices of a video's stored clips; `masked_SV` bool (2B, V).
    """

    clips_SV: Tensor
    masked_SV: Tensor


def video_keys(video_ids: Sequence[str]) -> Tensor:
    """A 64-bit hash per video id, int64 (videos,): the video's input to every draw."""
    digests = (hashlib.blake2b(video_id.encode(), digest_size=8).digest() for video_id in video_ids)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)


def draw_sets(keys_B: Tensor, num_clips: int, options: Sets, *, seed: int, epoch: int) -> ClipSets:
    """Draw 2V clips per video without replacement, split them into two sets of V, and mask some of them.

    `num_clips`, the number of stored clips per video, must be at least twice the set size V. Each clip of a
    set is masked independently with probability `mask_ratio`; if `masked_clips` is given, exactly that many
    clips per set are masked, each equally likely.
    """
    set_size = options.set_size
    assert num_clips >= 2 * set_size
    clips_B2V = draw_clips(keys_B, num_clips, 2 * set_size, seed=seed, epoch=epoch)
    numbers_SV = _first_then_second(_numbers(_stream_seeds(keys_B, seed, epoch), num_clips, 2 * set_size))
    if options.masked_clips is None:
        masked_SV = _uniform(numbers_SV) < options.mask_ratio
    else:
        masked_SV = numbers_SV.argsort(dim=1).argsort(dim=1) < options.masked_clips
    return ClipSets(_first_then_second(clips_B2V), masked_SV)


def varied_positions(
    positions_SV7: Tensor, keys_B: Tensor, num_clips: int, options: Sets, *, seed: int, epoch: int
) -> Tensor:
    """The positions of drawn sets, normalised, as the training sees them: with jittered times, or without positions.

    The flip, 1 or -1, of a set without positions is 0, as is everything else.
    """
    if not options.time_jitter and not options.position_dropout:
        return positions_SV7
    # The numbers before these are those of `draw_sets`.
    numbers_B4 = _numbers(_stream_seeds(keys_B, seed, epoch), num_clips + 2 * options.set_size, 4)
    uniform_S2 = _uniform(_first_then_second(numbers_B4))
    factor_S = 1 + options.time_jitter * (2 * uniform_S2[:, 0] - 1)
    flip_and_box, times = positions_SV7.split([5, 2], dim=-1)
    varied = torch.cat([flip_and_box, times * factor_S[:, None, None]], -1)
    return varied.masked_fill((uniform_S2[:, 1] < options.position_dropout)[:, None, None], 0.0)


def draw_clips(keys_B: Tensor, num_clips: int, count: int, *, seed: int, epoch: int) -> Tensor:
    """Draw `count` of `num_clips` clips per video without replacement: indices, int64 (B, count)."""
    priorities_BN = _numbers(_stream_seeds(keys_B, seed, epoch), 0, num_clips)
    return priorities_BN.argsort(dim=1)[:, :count]


def shuffled(num_videos: int, *, seed: int, epoch: int, window: int = 0) -> Tensor:
    """The order of the videos in an epoch, or in one window of it, int64 (videos,); the same on every worker."""
    return _numbers(_stream_seeds(torch.tensor([-1 - window]), seed, epoch), 0, num_videos)[0].argsort()


def order_of_epoch(blocks: Sequence[tuple[int, int]], *, seed: int, epoch: int) -> Tensor:
    """The rows of the videos that an epoch uses, in its order, int64.

    A block is a number of consecutive videos, and how many of them an epoch uses, others in each epoch.
    """
    if all(num_used == count for count, num_used in blocks):
        return shuffled(sum(count for count, _ in blocks), seed=seed, epoch=epoch)
    rows, start = [], 0
    for number, (count, num_used) in enumerate(blocks):
        of_block = shuffled(count, seed=seed, epoch=epoch, window=_WINDOW_OF_BLOCK + number)
        rows.append(start + of_block[:num_used])
        start += count
    chosen = torch.cat(rows)
    return chosen[shuffled(len(chosen), seed=seed, epoch=epoch)]


def used_of_shard(count: int, num_used: int, *, shard: int, seed: int, epoch: int) -> Tensor:
    """Which `num_used` of the `count` videos of a shard an epoch uses, int64, sorted."""
    return shuffled(count, seed=seed, epoch=epoch, window=_WINDOW_OF_SHARD + shard)[:num_used].sort().values


def dropout_seed(*, seed: int, step: int, worker: int, part: int) -> int:
    """A separate seed per step, worker and part of a batch, so that no random state has to be saved."""
    return int(_mixed(_stream_seeds(torch.tensor([worker]), seed, step) + part))


def _first_then_second(drawn_B2V: Tensor) -> Tensor:
    first, second = drawn_B2V.chunk(2, dim=1)
    return torch.cat([first, second])


def _stream_seeds(keys: Tensor, seed: int, epoch: int) -> Tensor:
    """One random stream per key, as its seed, int64 like `keys`."""
    return _mixed(_mixed(keys + seed * _GOLDEN % 2**63) + (epoch + 1) * _GOLDEN % 2**63)


def _numbers(streams: Tensor, start: int, count: int) -> Tensor:
    """Pseudo-random int64 (streams, count): `count` numbers of each stream, from number `start` on."""
    counters = torch.arange(start + 1, start + count + 1, device=streams.device)
    return _mixed(streams[:, None] + counters * _GOLDEN)


def _uniform(numbers: Tensor) -> Tensor:
    """Uniform float32 in [0, 1) from random bits; bit-identical on every device."""
    return (_shifted(numbers, 40) & 0xFFFFFF).float() / 2**24


def _mixed(x: Tensor) -> Tensor:
    """The splitmix64 finaliser, which relies on int64 products wrapping around."""
    x = (x ^ _shifted(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shifted(x, 27)) * _MULTIPLIER_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's `>>` repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
