"""What an aggregator saw of a corpus while it was trained, and what a table has to say of that."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scale_ray.aggregator import Aggregator
from scale_ray.errors import UserError
from scale_ray.store import FeatureStore


def trained_on(store: FeatureStore, video_ids: Sequence[str], set_size: int) -> dict[str, Any]:
    """Which videos an aggregator was trained on, in numbers: goes with it wherever it goes.

    Videos, those of them that nobody labelled, for every split those of each side, the clips of a set, and a
    digest of the store's ids with their sides, and with whether they are labelled.
    """
    ids = set(video_ids)
    videos = _described(store)
    seen = [row for row in videos if row["video_id"] in ids]
    sides = Counter((name, side) for row in seen for name, side in row["splits"])
    return {
        "videos": len(seen),
        "unlabelled": sum(not row["labelled"] for row in seen),
        "splits": {name: {side: n for (of, side), n in sides.items() if of == name} for name in store.split_names()},
        "set_size": set_size,
        "store": _digest(videos),
    }


def notes_on(seen: Mapping[str, Any], store: FeatureStore, split: str) -> list[str]:
    """What a reader of a table must know of the pretraining; nothing where it saw the training split alone."""
    if not seen:
        return ["the aggregator's folder does not say which videos it was trained on"]
    if seen["store"] != _digest(_described(store)):
        return [
            f"the aggregator was trained on {seen['videos']} videos of another corpus, or of another state of this one"
        ]
    told = []
    if tested := seen["splits"].get(split, {}).get("test", 0):
        told.append(f"{tested} test videos")
    if seen["unlabelled"]:
        told.append(f"{seen['unlabelled']} videos that nobody labelled")
    return [f"transductive: the aggregator also saw {' and '.join(told)}, without labels"] if told else []


def _described(store: FeatureStore) -> list[dict[str, Any]]:
    """Every video's id, sides, and whether anybody labelled it."""
    told = ("label", "labels", "target")
    rows = store.videos().select(["video_id", "splits", *told]).to_pylist()
    return [
        {"video_id": r["video_id"], "splits": r["splits"], "labelled": any(r[name] is not None for name in told)}
        for r in rows
    ]


def _digest(videos: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=10)
    for row in sorted(videos, key=lambda row: row["video_id"]):
        digest.update(json.dumps([row["video_id"], sorted(row["splits"]), row["labelled"]]).encode())
    return digest.hexdigest()


def require_width(store: FeatureStore, aggregator: Aggregator) -> None:
    """Refuse an aggregator that was made for features of another width or backbone."""
    width = store.feature_width()
    if width is not None and width != aggregator.feature_width:
        raise UserError(
            f"checkpoint: expected an aggregator for features of width {width} (backbone "
            f"{store.fingerprint['backbone']}), found one of width {aggregator.feature_width}"
            + (f" (backbone {aggregator.origin['backbone']})" if "backbone" in aggregator.origin else "")
        )
    for key in ("backbone", "weights"):
        ours, theirs = store.fingerprint[key], aggregator.origin.get(key, store.fingerprint[key])
        if ours != theirs:
            raise UserError(f"checkpoint: expected an aggregator for {key} {ours!r}, found one for {theirs!r}")
