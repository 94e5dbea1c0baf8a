"""The contact sheet of a query and its neighbours."""

from __future__ import annotations

from scale_ray.embedding.neighbours import Found
from scale_ray.reports.contact_sheet import Tile, contact_sheet, frames_of, thumbnails
from scale_ray.store.feature_store import FeatureStore

_TILES_OF_ROW = 6


def picture_of_neighbours(found: Found, store: FeatureStore) -> bytes:
    """A contact sheet: the query and its neighbours with a frame of each; green and red where labels are known."""
    frames = frames_of(store, [near.video_id for near in found.neighbours])
    stored = set(store.videos()["video_id"].to_pylist())
    if found.query in stored:
        frame = frames_of(store, [found.query])[found.query]
    else:
        [frame] = thumbnails([found.query])
    tiles = [Tile(frame, f"query\n{found.label or ''}")]
    for near in found.neighbours:
        agrees = None if found.label is None or near.label is None else near.label == found.label
        tiles.append(Tile(frames[near.video_id], f"{near.cosine:.2f}\n{near.label or near.video_id[-24:]}", agrees))
    rows = [tiles[start : start + _TILES_OF_ROW] for start in range(0, len(tiles), _TILES_OF_ROW)]
    return contact_sheet(rows, f"Nearest to {found.query[-60:]}, with cosine")
