"""Clip sets to representations: what leaves the aggregator for a video (section 5 of the method)."""

from __future__ import annotations

import torch
from torch import Tensor

from scale_ray.aggregator import Aggregator

_VIDEOS_AT_ONCE = 256


@torch.inference_mode()
def set_tokens(aggregator: Aggregator, features: Tensor, positions: Tensor) -> Tensor:
    """The set token of every video, float32 (videos, E): all its clips as one set, nothing masked.

    `features` (videos, V, D) of any float type; `positions` (videos, V, 7), normalised.
    """
    aggregator.eval()
    return torch.cat(
        [
            aggregator(features[start : start + _VIDEOS_AT_ONCE].float(), positions[start : start + _VIDEOS_AT_ONCE])[0]
            for start in range(0, len(features), _VIDEOS_AT_ONCE)
        ]
    )


def clip_representations(features: Tensor, tokens: Tensor | None) -> Tensor:
    """`[x, c]` of every clip, float32 (videos, V, D + E): its feature beside the set token of its set.

    Without tokens the feature alone. The mean over V is the video's representation.
    """
    features = features.float()
    if tokens is None:
        return features
    return torch.cat([features, tokens[:, None].expand(-1, features.shape[1], -1)], 2)
