"""What a probe sees of a side's videos: one of the representations that are compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from scale_ray.aggregator import Aggregator, clip_representations, set_tokens, tokens_of_clips
from scale_ray.clip_sets import draw_clips
from scale_ray.probes.data import ProbeDataset
from scale_ray.probes.knn import centred
from scale_ray.probes.mapped import by_parts

_VIDEOS_AT_ONCE = 512
# Set tokens of drawn sets are kept up to this size, and else computed when they are needed.
_KEPT_BYTES = 2**30


class Tokens:
    """The set tokens of a side's videos, of all their clips and of sets drawn from them; computed once."""

    def __init__(self, side: ProbeDataset, aggregator: Aggregator, ensemble: int, num_draws: int) -> None:
        self._side, self._aggregator, self._ensemble = side, aggregator, ensemble
        self._keeps = len(side) * aggregator.options.width * 2 * num_draws <= _KEPT_BYTES
        self._kept: dict[tuple[int, int, int], Tensor] = {}

    @cached_property
    def whole(self) -> Tensor:
        """float32 (videos, N, E), or (videos, 1, E) where all clips are one set."""
        ensemble = self._ensemble
        if not ensemble or ensemble >= self._side.num_clips:
            return self._of_all(lambda rows: self._of(rows)[:, None])
        features, positions = self._side.features, self._side.positions
        return self._of_all(lambda rows: tokens_of_clips(self._aggregator, features[rows], positions[rows], ensemble))

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor:
        """float32 (B, E): of the sets of `set_size` clips that (seed, epoch) draws."""
        if not self._keeps:
            return self._of(rows, set_size, seed, epoch)
        key = (set_size, seed, epoch)
        if key not in self._kept:
            if any(known[:2] != key[:2] for known in self._kept):
                self._kept.clear()  # the next seed: the draws of the last one are done with
            self._kept[key] = self._of_all(lambda some: self._of(some, set_size, seed, epoch).half())
        return self._kept[key][rows].float()

    def _of_all(self, made: Callable[[Tensor], Tensor]) -> Tensor:
        return by_parts(len(self._side), made, self._side.scratch)

    def _of(self, rows: Tensor, set_size: int = 0, seed: int = 0, epoch: int = 0) -> Tensor:
        side = self._side
        if not set_size:
            return set_tokens(self._aggregator, side.features[rows], side.positions[rows])
        at = drawn_clips(side, rows, set_size, seed, epoch)
        return set_tokens(self._aggregator, side.features[at], side.positions[at])


def drawn_clips(side: ProbeDataset, rows: Tensor, set_size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Where the clips of randomly drawn sets are in a side's features: rows (B, 1) and clips (B, V)."""
    return rows[:, None], draw_clips(side.keys[rows], side.num_clips, set_size, seed=seed, epoch=epoch)


class View:
    """One representation of a side's videos.

    `base` is what each clip says by itself: its `feature`, its `geometry`, or `nothing`; with `tokens` the set
    token of its set stands beside it.
    """

    def __init__(self, side: ProbeDataset, base: str, tokens: Tokens | None = None) -> None:
        self.side, self._tokens = side, tokens
        empty = side.features[..., :0]
        self._base = {"feature": side.features, "geometry": side.geometry, "nothing": empty}[base]

    def whole(self, rows: Tensor) -> Tensor:
        """All clips of some videos, float32 (B, N, d)."""
        base = self._base[rows]
        if self._tokens is None:
            return clip_representations(base, None)
        return clip_representations(base, self._tokens.whole[rows].expand(-1, base.shape[1], -1))

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor:
        """Randomly drawn sets of some videos, float32 (B, V, d)."""
        base = self._base[drawn_clips(self.side, rows, set_size, seed, epoch)]
        tokens = None if self._tokens is None else self._tokens.drawn(rows, set_size, seed, epoch)
        return clip_representations(base, tokens)

    @cached_property
    def videos(self) -> Tensor:
        """The representation of each video: the mean over its clips, float32 (videos, d)."""
        return by_parts(len(self.side), lambda rows: self.whole(rows).mean(1), self.side.scratch)

    def centred(self, rows: Tensor | None = None) -> Tensor:
        """The representations of all or some videos, centred over these and at unit norm, float32 (videos, d)."""
        return centred(self.videos, rows, self.side.scratch)

    def standardisation(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (d,) over all clips of some videos and one over their standard deviation (d,), a part at a time."""
        total = squares = torch.zeros((), dtype=torch.float64)
        for some in rows.split(_VIDEOS_AT_ONCE):
            clips = self.whole(some).flatten(0, 1).double()
            total, squares = total + clips.sum(0), squares + clips.square().sum(0)
        count = len(rows) * self.side.num_clips
        mean, mean_square = total / count, squares / count
        std = (mean_square - mean.square()).clamp(min=0).sqrt()
        # A column that never changes over these clips says nothing; dividing by its rounding noise would.
        varies = std > 1e-6 * mean_square.sqrt().clamp(min=1e-12)
        return mean.float(), torch.where(varies, 1 / std, 0.0).float()


class SetInputs:
    """What the aggregator itself takes, for a probe that trains it: `[feature, position]` of each clip."""

    def __init__(self, side: ProbeDataset) -> None:
        self.side = side

    def whole(self, rows: Tensor) -> Tensor:
        """float32 (B, N, D + 7)."""
        return torch.cat([self.side.features[rows].float(), self.side.positions[rows]], 2)

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor:
        """float32 (B, V, D + 7)."""
        at = drawn_clips(self.side, rows, set_size, seed, epoch)
        return torch.cat([self.side.features[at].float(), self.side.positions[at]], 2)
