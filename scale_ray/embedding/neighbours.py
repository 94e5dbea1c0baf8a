"""The nearest videos of a store to one query, by the cosine of their representations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scale_ray.aggregator import Aggregator
from scale_ray.clips import MODES
from scale_ray.config import Representing
from scale_ray.embedding.video_model import VideoModel, vectors_of
from scale_ray.errors import UserError
from scale_ray.locations import absolute
from scale_ray.store import FeatureStore, StoredClips

_VIDEOS_AT_ONCE = 1024


@dataclass(frozen=True)
class Neighbour:
    """A stored video and its cosine with the query, in [-1, 1]."""

    video_id: str
    cosine: float
    label: str | None
    path: str


@dataclass(frozen=True)
class SearchResult:
    """The query as it was given, its label if it is a stored video, and its neighbours, nearest first."""

    query: str
    label: str | None
    neighbours: list[Neighbour]


def find_neighbours(
    query: str,
    store: FeatureStore,
    aggregator: Aggregator,
    count: int,
    representing: Representing,
    weights_at: str | None = None,
) -> SearchResult:
    """The `count` videos of the store that are nearest to the query: the id of one of them, or a video file.

    Vectors are centred on the mean of the store's and brought to unit norm. The query itself is left out.

    Raises
    ------
    UserError
        Where the query is neither a stored video nor one that can be read, or the store holds none.
    """
    ids, vectors = _vectors(store, aggregator, representing)
    if not ids:
        raise UserError(f"expected a store with features, found none in {store.location}")
    videos = store.videos().select(["video_id", "path", "label"]).to_pylist()
    known = {row["video_id"]: row for row in videos}
    if query in known and query in ids:
        wanted, label = vectors[ids.index(query)], known[query]["label"]
        itself: str | None = query
    else:
        [embedded] = VideoModel.of(aggregator, representing, weights_at).embed([query])
        if embedded.vector is None:
            raise UserError(f"expected a video file or the id of a stored video, found {query!r}: {embedded.error}")
        wanted, label = embedded.vector, None
        itself = next((row["video_id"] for row in videos if row["path"] == absolute(query)), None)
    mean = vectors.mean(0)
    bank, wanted = (
        of / np.maximum(np.linalg.norm(of, axis=-1, keepdims=True), 1e-12) for of in (vectors - mean, wanted - mean)
    )
    cosine = bank @ wanted
    order = [place for place in np.argsort(-cosine, kind="stable") if ids[place] != itself][:count]
    neighbours = [
        Neighbour(ids[place], float(cosine[place]), known[ids[place]]["label"], known[ids[place]]["path"])
        for place in order
    ]
    return SearchResult(query, label, neighbours)


def _vectors(store: FeatureStore, aggregator: Aggregator, representing: Representing) -> tuple[list[str], np.ndarray]:
    """Every stored video's vector once: from its `eval` clips, or those of another mode where these are not."""
    seen: set[str] = set()
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for mode in ("eval", *(mode for mode in MODES if mode != "eval")):
        clips = StoredClips(store, mode, store.stored_ids(mode) - seen)
        for number, part in enumerate(clips.parts):
            for begin in range(0, len(part.rows), _VIDEOS_AT_ONCE):
                read = clips.read_rows(number, begin, begin + _VIDEOS_AT_ONCE)
                ids += read.video_ids
                vectors.append(vectors_of(aggregator, read.features, read.positions, representing.ensemble).mean(1))
        seen |= set(clips.video_ids)
    return ids, np.concatenate(vectors) if vectors else np.empty((0, 0))
