"""Training batches of clip sets, drawn from stored clips."""

from scale_ray.clip_sets.batches import Batch, Source, Videos, WorkerSlice
from scale_ray.clip_sets.draws import draw_clips, dropout_seed, shuffled, video_keys
from scale_ray.clip_sets.sources import ResidentClips, cache_folder, open_source

__all__ = [
    "Batch",
    "ResidentClips",
    "Source",
    "Videos",
    "WorkerSlice",
    "cache_folder",
    "draw_clips",
    "dropout_seed",
    "open_source",
    "shuffled",
    "video_keys",
]
