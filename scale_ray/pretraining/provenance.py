"""Which videos an aggregator was trained on, the notes about it under a probe table, and checks before its use."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scale_ray.aggregator import Aggregator
from scale_ray.errors import UserError
from scale_ray.store import FeatureStore


def trained_on(
    stores: Sequence[FeatureStore], video_ids: Sequence[str], set_size: int, mode: str = "train"
) -> dict[str, Any]:
    """A summary of the videos that an aggregator was trained on, which is saved with it.

    It holds the number of videos, of unlabelled videos, and of videos per split and subset; the clips per set, and
    their mode; and a digest of the ids in the store, with their subsets and whether they are labelled. `other_stores`
    are the same of each further store.
    """
    first, *others = (_seen_of(store, set(video_ids), set_size, mode) for store in stores)
    return {**first, "other_stores": others} if others else first


def _seen_of(store: FeatureStore, ids: set[str], set_size: int, mode: str) -> dict[str, Any]:
    videos = _video_rows(store)
    seen = [row for row in videos if row["video_id"] in ids]
    counts = Counter((split, subset) for row in seen for split, subset in row["splits"])
    return {
        "videos": len(seen),
        "unlabelled": sum(not row["labelled"] for row in seen),
        "splits": {
            name: {subset: count for (split, subset), count in counts.items() if split == name}
            for name in store.split_names()
        },
        "set_size": set_size,
        "mode": mode,
        "store": _digest(videos),
    }


def provenance_notes(seen: Mapping[str, Any], store: FeatureStore, split: str) -> list[str]:
    """Notes about the pretraining for a probe table; none if it used `train` clips of the training subset only.

    `seen` is the result of `trained_on`, empty if it is not known.
    """
    if not seen:
        return ["the aggregator's folder does not record which videos it was trained on"]
    of_stores = [seen, *(seen.get("other_stores") or [])]
    digest = _digest(_video_rows(store))
    here = next((of_store for of_store in of_stores if of_store["store"] == digest), None)
    elsewhere = sum(of_store["videos"] for of_store in of_stores if of_store is not here)
    if here is None:
        return [f"the aggregator was trained on {elsewhere} videos of another corpus, or of another state of this one"]
    mode = seen.get("mode") or "train"
    notes = [] if mode == "train" else [f"the aggregator was trained on {mode} clips"]
    if elsewhere:
        notes.append(f"the aggregator was also trained on {elsewhere} videos of other stores")
    seen = here
    extra = []
    if tested := seen["splits"].get(split, {}).get("test", 0):
        extra.append(f"{tested} test videos")
    if seen["unlabelled"]:
        extra.append(f"{seen['unlabelled']} unlabelled videos")
    if extra:
        notes.append(f"transductive: the aggregator also saw {' and '.join(extra)}, without labels")
    return notes


def _video_rows(store: FeatureStore) -> list[dict[str, Any]]:
    """Per video: its id, its subset of each split, and whether it is labelled."""
    targets = ("label", "labels", "target")
    rows = store.videos().select(["video_id", "splits", *targets]).to_pylist()
    return [
        {"video_id": r["video_id"], "splits": r["splits"], "labelled": any(r[name] is not None for name in targets)}
        for r in rows
    ]


def _digest(videos: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=10)
    for row in sorted(videos, key=lambda row: row["video_id"]):
        digest.update(json.dumps([row["video_id"], sorted(row["splits"]), row["labelled"]]).encode())
    return digest.hexdigest()


def check_compatible(store: FeatureStore, aggregator: Aggregator) -> None:
    """Check that the aggregator was trained on features of the store's width, backbone and weights.

    Raises
    ------
    UserError
        If any of them differs.
    """
    width = store.feature_width()
    if width is not None and width != aggregator.feature_width:
        raise UserError(
            f"checkpoint: expected an aggregator for features of width {width} (backbone "
            f"{store.fingerprint['backbone']}), found one of width {aggregator.feature_width}"
            + (f" (backbone {aggregator.origin['backbone']})" if "backbone" in aggregator.origin else "")
        )
    for key in ("backbone", "weights"):
        expected = store.fingerprint[key]
        actual = aggregator.origin.get(key, expected)
        if actual != expected:
            raise UserError(f"checkpoint: expected an aggregator for {key} {expected!r}, found one for {actual!r}")
