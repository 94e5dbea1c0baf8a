"""The inputs of probes: the clips of a dataset in one of the representations that are compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from scale_ray.aggregator import (
    Aggregator,
    clip_representations,
    tokens_of_clips,
    tokens_of_sets,
    videos_per_block,
)
from scale_ray.clip_sets import draw_clips
from scale_ray.config import Representing
from scale_ray.probes.data import ProbeDataset
from scale_ray.probes.knn import centred
from scale_ray.probes.mapped import ROWS_AT_ONCE, by_parts

# Tokens of drawn sets are cached if they take at most this size, otherwise computed on every use.
_CACHED_BYTES = 2**30


class Tokens:
    """The tokens of a dataset's videos, of all their clips and of sets drawn from them; computed once.

    T is the width of the tokens that the representation takes (`chosen_tokens`).
    """

    def __init__(
        self, dataset: ProbeDataset, aggregator: Aggregator, representing: Representing, num_draws: int
    ) -> None:
        self._dataset, self._aggregator, self._representing = dataset, aggregator, representing
        self._width = aggregator.options.width * len(representing.token_parts)
        self._num_draws = num_draws
        self._cache: dict[tuple[int, int, int], Tensor] = {}

    @cached_property
    def whole(self) -> Tensor:
        """The tokens of every clip, float32 (videos, N, T), or (videos, 1, T) if they are equal for all clips."""
        dataset, representing = self._dataset, self._representing
        if not representing.ensemble or representing.ensemble >= dataset.num_clips:
            return self._of_all_videos(self._tokens, dataset.num_clips)

        def of_clips(rows: Tensor) -> Tensor:
            return tokens_of_clips(self._aggregator, dataset.features[rows], dataset.positions[rows], representing)

        return self._of_all_videos(of_clips, dataset.num_clips)

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor:
        """The tokens of the sets of `set_size` clips that (seed, epoch) draws, float32 (B, V or 1, T)."""
        if not self._is_cached(set_size):
            return self._tokens(drawn_clips(self._dataset, rows, set_size, seed, epoch))
        key = (set_size, seed, epoch)
        if key not in self._cache:
            if any(cached[:2] != key[:2] for cached in self._cache):
                self._cache.clear()  # the next seed does not use the draws of the last one
            self._cache[key] = self._of_all_videos(
                lambda part: self._tokens(drawn_clips(self._dataset, part, set_size, seed, epoch)).half(), set_size
            )
        return self._cache[key][rows].float()

    def _is_cached(self, set_size: int) -> bool:
        per_video = self._width * (set_size if "h" in self._representing.token_parts else 1)
        return len(self._dataset) * per_video * 2 * self._num_draws <= _CACHED_BYTES

    def _of_all_videos(self, compute: Callable[[Tensor], Tensor], num_clips: int) -> Tensor:
        rows_at_once = videos_per_block(ROWS_AT_ONCE, num_clips)
        return by_parts(len(self._dataset), compute, self._dataset.scratch, rows_at_once)

    def _tokens(self, index: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        dataset = self._dataset
        return tokens_of_sets(self._aggregator, dataset.features[index], dataset.positions[index], self._representing)


def drawn_clips(dataset: ProbeDataset, rows: Tensor, set_size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The index of randomly drawn sets into a dataset's features: rows (B, 1) and clips (B, V)."""
    return rows[:, None], draw_clips(dataset.keys[rows], dataset.num_clips, set_size, seed=seed, epoch=epoch)


class View:
    """One representation of a dataset's videos.

    `base` is the part that each clip has by itself: its `feature`, its `geometry`, or `nothing`. With `tokens` the
    parts are appended that the aggregator computes; `representing` says how feature and tokens are scaled.
    `standardisation`, a mean and a scale (d,), standardises the base. The geometry needs it: in raw units, a distance
    sees nothing but the width and height of a video.
    """

    def __init__(
        self,
        dataset: ProbeDataset,
        base: str,
        tokens: Tokens | None = None,
        representing: Representing | None = None,
        *,
        standardisation: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.dataset, self._tokens, self._base_name = dataset, tokens, base
        self.representing = representing or Representing()
        empty = dataset.features[..., :0]
        self._base = {"feature": dataset.features, "geometry": dataset.geometry, "nothing": empty}[base]
        if standardisation is not None:
            mean, scale = standardisation
            self._base = (self._base - mean) * scale

    @property
    def num_clips(self) -> int:
        """Clips per video."""
        return self.dataset.num_clips

    def whole(self, rows: Tensor) -> Tensor:
        """All clips of some videos, float32 (B, N, d)."""
        return self._with_tokens(self._base[rows], None if self._tokens is None else self._tokens.whole[rows])

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor:
        """Randomly drawn sets of some videos, float32 (B, V, d)."""
        base = self._base[drawn_clips(self.dataset, rows, set_size, seed, epoch)]
        tokens = None if self._tokens is None else self._tokens.drawn(rows, set_size, seed, epoch)
        return self._with_tokens(base, tokens)

    def _with_tokens(self, base: Tensor, tokens: Tensor | None) -> Tensor:
        if self._base_name == "geometry":
            return base
        return clip_representations(base, tokens, self.representing)

    @cached_property
    def videos(self) -> Tensor:
        """The representation of each video, float32 (videos, d): the mean over its clips."""
        rows_at_once = videos_per_block(ROWS_AT_ONCE, self.num_clips)
        return by_parts(len(self.dataset), lambda rows: self.whole(rows).mean(1), self.dataset.scratch, rows_at_once)

    def centred(self, rows: Tensor | None = None) -> Tensor:
        """The representations of all videos or of `rows`, minus their mean, at unit norm, float32 (videos, d)."""
        return centred(self.videos, rows, self.dataset.scratch)

    def standardisation(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (d,) over all clips of some videos, and the inverse of the standard deviation (d,); part by part."""
        total = squares = torch.zeros((), dtype=torch.float64)
        for part in rows.split(videos_per_block(ROWS_AT_ONCE, self.num_clips)):
            clips = self.whole(part).flatten(0, 1).double()
            total, squares = total + clips.sum(0), squares + clips.square().sum(0)
        count = len(rows) * self.num_clips
        mean, mean_square = total / count, squares / count
        std = (mean_square - mean.square()).clamp(min=0).sqrt()
        # A constant column carries no information; divided by its standard deviation it would be rounding noise.
        varies = std > 1e-6 * mean_square.sqrt().clamp(min=1e-12)
        return mean.float(), torch.where(varies, 1 / std, 0.0).float()


class SetInputs:
    """The inputs of the aggregator, for a probe that trains it: `[feature, position]` of each clip."""

    def __init__(self, dataset: ProbeDataset) -> None:
        self.dataset = dataset

    @property
    def num_clips(self) -> int:
        """Clips per video."""
        return self.dataset.num_clips

    def whole(self, rows: Tensor) -> Tensor:
        """All clips of some videos, float32 (B, N, D + 7)."""
        return torch.cat([self.dataset.features[rows].float(), self.dataset.positions[rows]], 2)

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor:
        """Randomly drawn sets of some videos, float32 (B, V, D + 7)."""
        index = drawn_clips(self.dataset, rows, set_size, seed, epoch)
        return torch.cat([self.dataset.features[index].float(), self.dataset.positions[index]], 2)
