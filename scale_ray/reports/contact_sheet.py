"""Contact sheets, which show a frame of each video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scale_ray.config import Extraction, Sampling
from scale_ray.console import shortened
from scale_ray.decoding import Decoder, Request, SharedPixels, video_bytes
from scale_ray.errors import UserError, VideoError
from scale_ray.files.locations import check_from_data, options_of, with_options_of
from scale_ray.reports.figures import drawn
from scale_ray.store import FeatureStore

# Clips of one frame, at the beginning and in the middle of the video; the central square of each.
_TWO_FRAMES = Sampling(frames=1, stride=1, eval_times=2, eval_crops=1)
Segment = tuple[float | None, float | None]
_MAX_CAPTION, _MAX_TITLE, _MAX_LINES = 24, 100, 2


def thumbnails(
    paths: Sequence[str], segments: Sequence[Segment] | None = None, input_size_px: int = 160
) -> Iterator[np.ndarray | None]:
    """The central square of each video's middle frame, RGB, uint8 (input_size_px, input_size_px, 3).

    `segments` are the starts and ends of the videos in their files, in seconds; None for the files' own. Gives None for
    a video that cannot be read.
    """
    limits = Extraction()
    pixels = SharedPixels(video_bytes("eval", _TWO_FRAMES, [input_size_px]))
    with Decoder(timeout_s=limits.decode_timeout_s, memory_gib=limits.decode_memory_gib) as decoder:
        for path, segment in zip(paths, segments or [(None, None)] * len(paths), strict=True):
            request = Request(path, path, "eval", _TWO_FRAMES, (input_size_px,), (0,), *segment)
            try:
                decoder.decode(request, pixels)
            except VideoError:
                yield None
                continue
            both = np.frombuffer(pixels.memory, np.uint8).reshape(2, input_size_px, input_size_px, 3)
            yield both[1].copy()


@dataclass(frozen=True)
class Tile:
    """A video on a contact sheet: its frame or None, a caption, and whether its label agrees with the query's.

    `agrees` is None if that is unknown, and for the query itself.
    """

    image: np.ndarray | None
    caption: str
    agrees: bool | None = None


def contact_sheet(rows: Sequence[Sequence[Tile]], title: str) -> bytes:
    """Draw each row as a query and its nearest neighbours: with a green frame if they agree with it, red if not.

    Captions and title may have several lines; each is shortened to what fits. Returns a PNG file.
    """
    columns = max(map(len, rows))
    with drawn(1.75 * columns + 0.2, 2.15 * len(rows) + 0.5) as (figure, picture):
        figure.suptitle(_fitting(title, _MAX_TITLE), fontsize=10)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for tiles, axes_of_row in zip(rows, grid, strict=True):
            for tile, axes in zip(tiles, axes_of_row, strict=False):
                axes.set_axis_on()
                axes.set_xticks([])
                axes.set_yticks([])
                if tile.image is None:
                    axes.set_facecolor("lightgrey")
                    axes.set_aspect("equal")
                    axes.text(0.5, 0.5, "no frame", ha="center", va="center", transform=axes.transAxes, fontsize=8)
                else:
                    axes.imshow(tile.image)
                colour = {None: "black", True: "tab:green", False: "tab:red"}[tile.agrees]
                for spine in axes.spines.values():
                    spine.set_color(colour)
                    spine.set_linewidth(2.5)
                axes.set_title(_fitting(tile.caption, _MAX_CAPTION), fontsize=7)
    return picture.png


def _fitting(text: str, most: int) -> str:
    return "\n".join(shortened(line, most) for line in text.split("\n", _MAX_LINES - 1))


def frames_of(store: FeatureStore, video_ids: list[str]) -> dict[str, np.ndarray | None]:
    """A frame of each of these videos of a store, by id; None if its file is missing or cannot be read.

    A path that data may not name counts as missing: a store may be somebody else's.
    """
    videos = store.videos()
    rows = videos.filter(pc.is_in(videos["video_id"], pa.array(video_ids, pa.string())))
    known = {row["video_id"]: row for row in rows.select(["video_id", "path", "start_s", "end_s"]).to_pylist()}
    frames: dict[str, np.ndarray | None] = dict.fromkeys(video_ids)
    opened = {video_id: path for video_id in frames if (path := _opened_at(known[video_id]["path"], store)) is not None}
    segments = [(known[video_id]["start_s"], known[video_id]["end_s"]) for video_id in opened]
    return frames | dict(zip(opened, thumbnails(list(opened.values()), segments), strict=True))


def _opened_at(path: str, store: FeatureStore) -> str | None:
    """The location at which a video of a store is opened; None if data may not name such a path."""
    try:
        # Earlier versions stored paths with the options of the user's own folder.
        return with_options_of(check_from_data(path.removesuffix(options_of(path))), store.location)
    except UserError:
        return None
