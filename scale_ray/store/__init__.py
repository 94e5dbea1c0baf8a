"""The feature store: its format, shards, readers, write lease and maintenance."""

from scale_ray.store.changes import changed_videos
from scale_ray.store.clip_reader import (
    ClipFeatures,
    StoredClips,
    check_modes,
    num_incomplete,
    open_clips,
    training_clips,
    training_ids,
)
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.joining import join_features, joined_fingerprint
from scale_ray.store.lease import Lease, write_lease
from scale_ray.store.maintenance import compact, remove_videos, repair, unreadable, verify
from scale_ray.store.schema import GEOMETRY, Failure, VideoFeatures, fingerprint_of
from scale_ray.store.several_stores import JoinedClips, TrainingStores
from scale_ray.store.shard_store import ShardStore

__all__ = [
    "GEOMETRY",
    "ClipFeatures",
    "Failure",
    "FeatureStore",
    "JoinedClips",
    "Lease",
    "ShardStore",
    "StoredClips",
    "TrainingStores",
    "VideoFeatures",
    "changed_videos",
    "check_modes",
    "compact",
    "fingerprint_of",
    "join_features",
    "joined_fingerprint",
    "num_incomplete",
    "open_clips",
    "remove_videos",
    "repair",
    "training_clips",
    "training_ids",
    "unreadable",
    "verify",
    "write_lease",
]
