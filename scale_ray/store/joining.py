"""The features of two backbones, of the same clips of the same videos, side by side in one store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scale_ray.clips import MODES, VideoGeometry
from scale_ray.errors import UserError
from scale_ray.store.changes import changed_videos
from scale_ray.store.clip_reader import StoredClips
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import GEOMETRY, VideoFeatures

_VIDEOS_PER_PART = 512
_SAMPLING = ("sampling", "sampling_seed")


def joined_fingerprint(first: FeatureStore, second: FeatureStore) -> dict[str, Any]:
    """The fingerprint of the joined features: it names both backbones, and `joined` holds what else describes them.

    Raises
    ------
    UserError
        If the clips of the two stores were sampled in different ways.
    """
    for name in _SAMPLING:
        ours, theirs = (store.fingerprint.get(name) for store in (first, second))
        if ours != theirs:
            raise UserError(
                f"{second.location}: expected the sampling of {first.location}, found {name} {theirs!r} instead of "
                f"{ours!r}; extract both with --backbone A,B"
            )
    described = [
        {name: value for name, value in store.fingerprint.items() if name not in _SAMPLING} for store in (first, second)
    ]
    return {
        "backbone": "+".join(of_store["backbone"] for of_store in described),
        "weights": "+".join(of_store["weights"] for of_store in described),
        "joined": described,
        **{name: first.fingerprint[name] for name in _SAMPLING if name in first.fingerprint},
    }


def join_features(
    first: FeatureStore, second: FeatureStore, joined: FeatureStore, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Write the videos that both stores hold to a third one, each clip's two features concatenated.

    Videos that it holds already are left as they are. `progress` is called with the number of videos and modes done.
    Returns how many videos and modes are in one of the stores only.

    Raises
    ------
    UserError
        If the file of a video or its clips are not the same in both stores, or the file is not the one whose features
        were joined before: the message names the video.
    """
    for store in (second, joined):
        if changed := changed_videos(store.videos(), first.videos()):
            raise UserError(
                f"{store.location}: expected features of the files that {first.location} has features of, found "
                f"{len(changed)} of other ones, such as {min(changed)!r} ({changed[min(changed)]}); extract again, or "
                "give another --store"
            )
    joined.replace_videos(first.videos())
    geometries, left_out, done = first.geometries(), 0, 0
    for mode in MODES:
        in_first, in_second, present = (store.stored_ids(mode) for store in (first, second, joined))
        both = in_first & in_second
        left_out += len(in_first ^ in_second)
        done += len(both & present)
        wanted = sorted(both - present)
        clips, others = StoredClips(first, mode, set(wanted)), StoredClips(second, mode, set(wanted))
        for number, part in enumerate(clips.parts):
            for begin in range(0, len(part.rows), _VIDEOS_PER_PART):
                ours = clips.read_rows(number, begin, begin + _VIDEOS_PER_PART)
                theirs = others.read_videos(ours.video_ids)
                _check_same_clips(ours.video_ids, ours.positions, theirs.positions, second.location)
                features = np.concatenate([ours.features, theirs.features], 2)
                videos = [
                    VideoFeatures(video_id, features[row], ours.positions[row], _geometry(geometries[video_id]))
                    for row, video_id in enumerate(ours.video_ids)
                ]
                joined.commit(joined.part_name(mode, ours.video_ids), mode, videos)
                done += len(videos)
                progress(done)
    return left_out


def _geometry(row: Mapping[str, Any]) -> VideoGeometry:
    return VideoGeometry(**{name: row[name] for name in GEOMETRY.names})


def _check_same_clips(video_ids: list[str], ours: np.ndarray, theirs: np.ndarray, location: str) -> None:
    if ours.shape == theirs.shape:
        different = np.flatnonzero((ours != theirs).any(axis=(1, 2)))
        if not len(different):
            return
        row = int(different[0])
        found = f"clip 0 from {theirs[row, 0, 5]:g} s instead of {ours[row, 0, 5]:g} s"
    else:
        row, found = 0, f"{theirs.shape[1]} clips instead of {ours.shape[1]}"
    raise UserError(
        f"{location}: expected the same clips of {video_ids[row]!r} in both stores, found {found}; extract both with "
        "--backbone A,B"
    )
