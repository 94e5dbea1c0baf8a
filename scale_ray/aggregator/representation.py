"""Clip sets to representations, one per video (section 5 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scale_ray.aggregator.model import Aggregator
from scale_ray.config import Representing

_VIDEOS_PER_BATCH = 256
# Up to so many clips per video, the number of videos limits a block; with more clips, blocks hold fewer videos.
_CLIPS_PER_VIDEO = 16


def videos_per_block(max_videos: int, num_clips: int) -> int:
    """How many videos of `num_clips` clips to compute at once: `max_videos` of up to 16 clips, fewer of longer ones."""
    return max(min(max_videos, max_videos * _CLIPS_PER_VIDEO // max(num_clips, 1)), 1)


def set_tokens(aggregator: Aggregator, features: Tensor, positions: Tensor) -> Tensor:
    """The set token per video, float32 (videos, E), of all its clips as one set, none masked.

    `features` (videos, V, D) of any float type; `positions` (videos, V, 7), normalised. The result is on the
    device of `features`; the aggregator is left in evaluation mode.
    """
    return tokens_of_sets(aggregator, features, positions, Representing(parts=("c",)))[:, 0]


@torch.inference_mode()
def tokens_of_sets(aggregator: Aggregator, features: Tensor, positions: Tensor, representing: Representing) -> Tensor:
    """The tokens that a representation takes from one set per video: see `chosen_tokens`; arguments as `set_tokens`."""
    device = next(aggregator.eval().parameters()).device
    per_batch = videos_per_block(_VIDEOS_PER_BATCH, features.shape[1])
    batches = zip(features.split(per_batch), positions.split(per_batch), strict=True)
    outputs = (aggregator(x.to(device).float(), p.to(device)) for x, p in batches)
    return torch.cat([chosen_tokens(token, of_clips, representing).to(features.device) for token, of_clips in outputs])


def tokens_of_clips(
    aggregator: Aggregator, features: Tensor, positions: Tensor, representing: Representing | None = None
) -> Tensor:
    """The tokens that belong to each clip, float32 (videos, V, T).

    All clips of a video are one set. If `representing.ensemble` is above 0, they are instead dealt into sets of at most
    that many clips, so that a long video is aggregated in sets of the size used in training.
    """
    representing = representing or Representing()
    num_videos, num_clips = features.shape[:2]
    num_sets = -(-num_clips // representing.ensemble) if representing.ensemble else 1
    width = len(representing.token_parts) * aggregator.options.width
    tokens = torch.empty(num_videos, num_clips, width, device=features.device)
    for first in range(num_sets):
        clips = slice(first, None, num_sets)
        tokens[:, clips] = tokens_of_sets(aggregator, features[:, clips], positions[:, clips], representing)
    return tokens


def chosen_tokens(set_token_SE: Tensor, clip_tokens_SVE: Tensor, representing: Representing) -> Tensor:
    """The parts c, h and h_mean that a representation has, concatenated, (S, V, T).

    It is (S, 1, T) if all clips of a set have the same. T is E times the number of these parts; each is scaled to unit
    norm if asked for.
    """
    found = {
        "c": set_token_SE[:, None],
        "h": clip_tokens_SVE,
        "h_mean": clip_tokens_SVE.mean(1, keepdim=True),
    }
    parts = [found[name] for name in representing.token_parts]
    num_clips = max(part.shape[1] for part in parts)
    if representing.unit_norm:
        parts = [F.normalize(part, dim=2) for part in parts]
    return torch.cat([part.expand(-1, num_clips, -1) for part in parts], 2)


def clip_representations(features: Tensor, tokens: Tensor | None, representing: Representing | None = None) -> Tensor:
    """`[x, c]` per clip, float32 (videos, V, D + T): its feature followed by the set token of its set.

    `tokens` (videos, V or 1, T) or (videos, T) come from the aggregator (`tokens_of_clips`); `representing` may choose
    others than the set token, and scales both parts. Without tokens the result is the feature alone. The mean over V is
    the representation of the video.
    """
    representing = representing or Representing()
    parts = []
    if representing.has_feature or tokens is None:
        parts.append(F.normalize(features.float(), dim=2) if representing.unit_norm else features.float())
    if tokens is not None:
        tokens = tokens[:, None] if tokens.ndim == 2 else tokens
        parts.append(representing.token_weight * tokens.expand(-1, features.shape[1], -1))
    return torch.cat(parts, 2)
