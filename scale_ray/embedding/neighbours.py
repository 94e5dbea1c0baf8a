"""Search: the videos of a store nearest to a query, by the cosine of their vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scale_ray.aggregator import Aggregator, videos_per_block
from scale_ray.clips import MODES
from scale_ray.config import BackboneSource, Representing
from scale_ray.embedding.video_model import VideoModel, clip_vectors
from scale_ray.errors import UserError
from scale_ray.files.locations import absolute, options_of
from scale_ray.store import FeatureStore, StoredClips

_VIDEOS_AT_ONCE = 1024


@dataclass(frozen=True)
class Neighbour:
    """A stored video and its cosine similarity to the query, in [-1, 1]."""

    video_id: str
    cosine: float
    label: str | None
    path: str


@dataclass(frozen=True)
class SearchResult:
    """The query as given, its label if it is a stored video with one, and its neighbours, nearest first."""

    query: str
    label: str | None
    neighbours: list[Neighbour]


def find_neighbours(
    query: str,
    store: FeatureStore,
    aggregator: Aggregator,
    count: int,
    representing: Representing,
    source: BackboneSource | None = None,
) -> SearchResult:
    """Find the `count` videos of the store nearest to the query: the id of a stored video, or a video file.

    All vectors are centred on the mean vector of the store and normalised to unit norm. The query itself is excluded.

    Raises
    ------
    UserError
        If the query is neither a stored video nor a readable video file, or if the store holds no features.
    """
    ids, vectors = _stored_vectors(store, aggregator, representing)
    if not ids:
        raise UserError(f"expected a store with features, found none in {store.location}")
    videos = store.videos().select(["video_id", "path", "start_s", "label"]).to_pylist()
    known = {row["video_id"]: row for row in videos}
    if query in known and query in ids:
        vector, label = vectors[ids.index(query)], known[query]["label"]
        query_id: str | None = query
    else:
        [embedded] = VideoModel.from_aggregator(aggregator, representing, **vars(source or BackboneSource())).embed(
            [query]
        )
        if embedded.vector is None:
            raise UserError(f"expected a video file or the id of a stored video, found {query!r}: {embedded.error}")
        vector, label = embedded.vector, None
        query_path = absolute(query).removesuffix(options_of(query))
        same = (row["video_id"] for row in videos if row["path"] == query_path and row["start_s"] is None)
        query_id = next(same, None)
    if not (np.isfinite(vectors).all() and np.isfinite(vector).all()):
        raise UserError(f"expected finite vectors, found some that are not: a feature in {store.location} or a weight")
    mean = vectors.mean(0)
    cosines = _normalised(vectors - mean) @ _normalised(vector - mean)
    nearest = [row for row in np.argsort(-cosines, kind="stable") if ids[row] != query_id][:count]
    neighbours = [
        Neighbour(ids[row], float(cosines[row]), known[ids[row]]["label"], known[ids[row]]["path"]) for row in nearest
    ]
    return SearchResult(query, label, neighbours)


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _stored_vectors(
    store: FeatureStore, aggregator: Aggregator, representing: Representing
) -> tuple[list[str], np.ndarray]:
    """Ids and vectors of all stored videos, each from its `eval` clips, or from those of another mode without these."""
    done: set[str] = set()
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for mode in ("eval", *(mode for mode in MODES if mode != "eval")):
        clips = StoredClips(store, mode, store.stored_ids(mode) - done)
        for number, part in enumerate(clips.parts):
            at_once = videos_per_block(_VIDEOS_AT_ONCE, clips.num_clips)
            for begin in range(0, len(part.rows), at_once):
                block = clips.read_rows(number, begin, begin + at_once)
                ids += block.video_ids
                vectors.append(clip_vectors(aggregator, block.features, block.positions, representing).mean(1))
        done |= set(clips.video_ids)
    return ids, np.concatenate(vectors) if vectors else np.empty((0, 0))
