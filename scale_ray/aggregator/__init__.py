"""The set transformer, and the representations that are read from it."""

from scale_ray.aggregator.model import HEAD_WIDTH, Aggregator, check_origin
from scale_ray.aggregator.positions import normalised_positions
from scale_ray.aggregator.representation import (
    chosen_tokens,
    clip_representations,
    set_tokens,
    tokens_of_clips,
    tokens_of_sets,
    videos_per_block,
)

__all__ = [
    "HEAD_WIDTH",
    "Aggregator",
    "check_origin",
    "chosen_tokens",
    "clip_representations",
    "normalised_positions",
    "set_tokens",
    "tokens_of_clips",
    "tokens_of_sets",
    "videos_per_block",
]
