"""Clip sets to representations, one per video (section 5 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from scale_ray.aggregator.model import Aggregator

_VIDEOS_PER_BATCH = 256
# Up to so many clips per video, the number of videos limits a block; with more clips, blocks hold fewer videos.
_CLIPS_PER_VIDEO = 16


def videos_per_block(max_videos: int, num_clips: int) -> int:
    """How many videos of `num_clips` clips to compute at once: `max_videos` of up to 16 clips, fewer of longer ones."""
    return max(min(max_videos, max_videos * _CLIPS_PER_VIDEO // max(num_clips, 1)), 1)


@torch.inference_mode()
def set_tokens(aggregator: Aggregator, features: Tensor, positions: Tensor) -> Tensor:
    """The set token per video, float32 (videos, E), of all its clips as one set, none masked.

    `features` (videos, V, D) of any float type; `positions` (videos, V, 7), normalised. The result is on the
    device of `features`; the aggregator is left in evaluation mode.
    """
    device = next(aggregator.eval().parameters()).device
    per_batch = videos_per_block(_VIDEOS_PER_BATCH, features.shape[1])
    batches = zip(features.split(per_batch), positions.split(per_batch), strict=True)
    return torch.cat([aggregator(x.to(device).float(), p.to(device))[0].to(features.device) for x, p in batches])


def tokens_of_clips(aggregator: Aggregator, features: Tensor, positions: Tensor, ensemble: int = 0) -> Tensor:
    """The set token that belongs to each clip, float32 (videos, V, E).

    All clips of a video are one set. If `ensemble` is above 0, they are instead dealt into sets of at most that
    many clips, so that a long video is aggregated in sets of the size used in training.
    """
    num_clips = features.shape[1]
    num_sets = -(-num_clips // ensemble) if ensemble else 1
    tokens = [set_tokens(aggregator, features[:, n::num_sets], positions[:, n::num_sets]) for n in range(num_sets)]
    return torch.stack(tokens, 1)[:, torch.arange(num_clips) % num_sets]


def clip_representations(features: Tensor, tokens: Tensor | None) -> Tensor:
    """`[x, c]` per clip, float32 (videos, V, D + E): its feature followed by the set token of its set.

    `tokens` is (videos, E), or (videos, V, E) if the clips belong to several sets; without tokens the result is
    the feature alone. The mean over V is the representation of the video.
    """
    features = features.float()
    if tokens is None:
        return features
    if tokens.ndim == 2:
        tokens = tokens[:, None].expand(-1, features.shape[1], -1)
    return torch.cat([features, tokens], 2)
