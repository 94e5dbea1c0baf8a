"""A query to the nearest videos of a feature store."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from scale_ray.aggregator import Aggregator
from scale_ray.config import NUM_NEIGHBOURS, NeighboursConfig
from scale_ray.console import Console, Result, shortened
from scale_ray.embedding import SearchResult, backbone_note, find_neighbours
from scale_ray.files.locations import atomic_write, join
from scale_ray.hashing import digest
from scale_ray.pretraining import check_compatible
from scale_ray.reports import Tile, contact_sheet, frames_of, thumbnails
from scale_ray.store import FeatureStore
from scale_ray.tracking import aggregator_of, run_folder_of

if TYPE_CHECKING:
    import pandas as pd

_TILES_PER_ROW = 6
_LABEL_SHOWN = 60


@dataclass(frozen=True)
class NeighboursResult(Result):
    """The neighbours of a query, nearest first, and their contact sheet (PNG); where it was written, if it was."""

    search: SearchResult
    sheet: bytes = field(repr=False)
    picture: str | None

    def lines(self) -> list[str]:
        near = self.search.neighbours
        labels = [shortened(video.label or "-", _LABEL_SHOWN) for video in near]
        width = max(map(len, labels), default=1)
        lines = [
            f"{video.cosine:6.3f}  {label:<{width}}  {video.video_id}"
            for video, label in zip(near, labels, strict=True)
        ]
        return [*lines, *([f"picture: {self.picture}"] if self.picture else [])]

    def values(self) -> dict[str, Any]:
        return {**asdict(self.search), "picture": self.picture}

    def to_pandas(self) -> pd.DataFrame:
        """A row per neighbour, nearest first: `video_id`, `cosine`, `label` and `path`."""
        import pandas as pd

        return pd.DataFrame([vars(video) for video in self.search.neighbours])

    def pictures(self) -> list[bytes]:
        return [self.sheet]


def neighbours(
    query: str,
    store: str,
    checkpoint: str,
    *,
    runs: str = "runs",
    count: int = NUM_NEIGHBOURS,
    picture: str | None = None,
    config: NeighboursConfig,
    console: Console,
) -> NeighboursResult:
    """The `count` videos of a store that are nearest to a query: a video file, or the id of a stored video.

    The contact sheet is written to the file `picture`; without it to `neighbours/` in the folder of the checkpoint,
    if that is a run.

    Raises
    ------
    UserError
        If store and checkpoint do not fit together, or the query is neither a stored video nor a readable file.
    """
    features = FeatureStore(store)
    location = aggregator_of(checkpoint, runs)
    aggregator = Aggregator.load(location)
    check_compatible(features, aggregator)
    if note := backbone_note(aggregator.origin):
        console.say(note)
    search = find_neighbours(query, features, aggregator, count, config.representing, config.source)
    sheet = _contact_sheet(search, features)
    run = run_folder_of(location)
    if picture is None and run is not None:
        picture = join(run.location, "neighbours", _file_name(query))
    if picture is not None:
        with atomic_write(picture) as file:
            file.write(sheet)
    return NeighboursResult(search, sheet, picture)


def _file_name(query: str) -> str:
    """A file name for the sheet of a query: its last part, and a hash of the whole."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", query.rstrip("/").rpartition("/")[2]).strip("._")
    return f"{name or 'query'}-{digest(query)[:6]}.png"


def _contact_sheet(search: SearchResult, store: FeatureStore) -> bytes:
    """The query and its neighbours with a frame of each; green and red where labels are known."""
    frames = frames_of(store, [near.video_id for near in search.neighbours])
    if search.query in set(store.videos()["video_id"].to_pylist()):
        frame = frames_of(store, [search.query])[search.query]
    else:
        [frame] = thumbnails([search.query])
    tiles = [Tile(frame, f"query\n{search.label or ''}")]
    for near in search.neighbours:
        agrees = None if search.label is None or near.label is None else near.label == search.label
        tiles.append(Tile(frames[near.video_id], f"{near.cosine:.2f}\n{near.label or near.video_id[-24:]}", agrees))
    rows = [tiles[start : start + _TILES_PER_ROW] for start in range(0, len(tiles), _TILES_PER_ROW)]
    return contact_sheet(rows, f"Nearest to {search.query[-60:]}, with cosine")
