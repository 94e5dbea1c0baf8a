"""The feature store: its format, shards, readers, write lease and maintenance."""

from scale_ray.store.changes import changed_videos
from scale_ray.store.clip_reader import ClipFeatures, StoredClips, training_clips
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.lease import Lease, write_lease
from scale_ray.store.maintenance import compact, remove_videos, repair, unreadable, verify
from scale_ray.store.schema import GEOMETRY, Failure, VideoFeatures, fingerprint_of
from scale_ray.store.shard_store import ShardStore

__all__ = [
    "GEOMETRY",
    "ClipFeatures",
    "Failure",
    "FeatureStore",
    "Lease",
    "ShardStore",
    "StoredClips",
    "VideoFeatures",
    "changed_videos",
    "compact",
    "fingerprint_of",
    "remove_videos",
    "repair",
    "training_clips",
    "unreadable",
    "verify",
    "write_lease",
]
