"""Clip sets to representations: what leaves the aggregator for a video (section 5 of the method)."""

from __future__ import annotations

import torch
from torch import Tensor

from scale_ray.aggregator.model import Aggregator

_VIDEOS_AT_ONCE = 256


@torch.inference_mode()
def set_tokens(aggregator: Aggregator, features: Tensor, positions: Tensor) -> Tensor:
    """The set token of every video, float32 (videos, E): all its clips as one set, nothing masked.

    `features` (videos, V, D) of any float type; `positions` (videos, V, 7), normalised.
    """
    device = next(aggregator.eval().parameters()).device
    parts = zip(features.split(_VIDEOS_AT_ONCE), positions.split(_VIDEOS_AT_ONCE), strict=True)
    return torch.cat([aggregator(some.to(device).float(), at.to(device))[0].to(features.device) for some, at in parts])


def tokens_of_clips(aggregator: Aggregator, features: Tensor, positions: Tensor, ensemble: int = 0) -> Tensor:
    """For every clip the set token of its set, float32 (videos, V, E).

    All clips of a video are one set, or, with an `ensemble`, dealt into sets of at most so many clips: of a
    long video the aggregator then sees sets of the size that it was trained on.
    """
    num_clips = features.shape[1]
    num_sets = -(-num_clips // ensemble) if ensemble else 1
    tokens = [set_tokens(aggregator, features[:, n::num_sets], positions[:, n::num_sets]) for n in range(num_sets)]
    return torch.stack(tokens, 1)[:, torch.arange(num_clips) % num_sets]


def clip_representations(features: Tensor, tokens: Tensor | None) -> Tensor:
    """`[x, c]` of every clip, float32 (videos, V, D + E): its feature beside the set token of its set.

    `tokens` (videos, E), or (videos, V, E) where the clips are of several sets. Without tokens the feature
    alone. The mean over V is the video's representation.
    """
    features = features.float()
    if tokens is None:
        return features
    if tokens.ndim == 2:
        tokens = tokens[:, None].expand(-1, features.shape[1], -1)
    return torch.cat([features, tokens], 2)
