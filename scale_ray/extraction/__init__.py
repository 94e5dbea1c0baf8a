"""Plans an extraction, commits its results to the stores and summarises the outcome."""

from scale_ray.extraction.pixel_blocks import decode_videos, pixels_of
from scale_ray.extraction.results import (
    batch_column,
    decoded_mask,
    features_column,
    read_results,
    with_columns,
    without_pixels,
)
from scale_ray.extraction.run import ExtractionRun
from scale_ray.extraction.summary import ExtractionResult, ExtractionSummary
from scale_ray.extraction.targets import Target, exclusively, open_targets

__all__ = [
    "ExtractionResult",
    "ExtractionRun",
    "ExtractionSummary",
    "Target",
    "batch_column",
    "decode_videos",
    "decoded_mask",
    "exclusively",
    "features_column",
    "open_targets",
    "pixels_of",
    "read_results",
    "with_columns",
    "without_pixels",
]
