"""The feature store: one backbone's features of many videos, as plain Parquet.

    store.json                    format, fingerprint and how the backbone was had, written first
    videos.parquet                a row a video, replaced as a whole by each run
    features/part-MODE-*.parquet  immutable shards, each whole or absent
    failures/part-*.parquet       the ledger of videos that could not be used
    leases/*.json                 who writes at the moment

Readable with pyarrow, pandas and DuckDB without this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from scale_ray.clips import MODES, POSITION_FIELDS
from scale_ray.corpus.splits import DEFAULT
from scale_ray.errors import UserError
from scale_ray.locations import absolute, exists, filesystem_of, join, list_files, read_bytes, written_whole
from scale_ray.store.schema import (
    _LEDGER,
    _VIDEOS,
    FORMAT,
    GEOMETRY,
    Failure,
    VideoFeatures,
)


class FeatureStore:
    """A store at a folder or URI.

    Opening does not write anything; `create` makes a new store or checks that an old one fits. `made_with`
    are the options that the backbone was loaded with: its weights are told apart by the fingerprint, these
    say where to find them.

    Raises
    ------
    UserError
        On opening, where there is no store or one of another format.
    """

    HEAD, FOLDER, KIND, MADE_BY = "store.json", "features", "a feature store", "extract"
    ALIKE, FLAG = "the features of one backbone and sampling", "--store"

    def __init__(self, location: str) -> None:
        self.location = absolute(location)
        head = join(self.location, self.HEAD)
        if not exists(head):
            raise UserError(f"expected {self.KIND} (made by `scale-ray {self.MADE_BY}`), found none at {location}")
        described = json.loads(read_bytes(head))
        if described.get("format") != FORMAT:
            raise UserError(f"{location}: expected store format {FORMAT}, found {described.get('format')!r}")
        self.fingerprint: dict[str, Any] = described["fingerprint"]
        self.made_with: dict[str, Any] = described.get("made_with", {})

    @classmethod
    def create(cls, location: str, fingerprint: Mapping[str, Any], made_with: Mapping[str, Any] | None = None) -> Self:
        """Open the store of this fingerprint at `location`, making it where there is none.

        Raises
        ------
        UserError
            Where the store there has another fingerprint: the message names what differs.
        """
        if cls.present(location):
            store = cls(location)
            store.require(fingerprint)
            return store
        if list_files(location):
            raise UserError(f"expected {cls.KIND} or an empty folder, found other files at {location}")
        described = {"format": FORMAT, "fingerprint": fingerprint, "made_with": dict(made_with or {})}
        text = json.dumps(described, indent=2)
        with written_whole(join(absolute(location), cls.HEAD)) as file:
            file.write(text.encode())
        return cls(location)

    @classmethod
    def present(cls, location: str) -> bool:
        return exists(join(absolute(location), cls.HEAD))

    @property
    def origin(self) -> dict[str, Any]:
        """What an aggregator that is trained on this store has to know of it."""
        return {**self.fingerprint, **({"made_with": self.made_with} if self.made_with else {})}

    def require(self, fingerprint: Mapping[str, Any]) -> None:
        ours, theirs = _flat(self.fingerprint), _flat(json.loads(json.dumps(fingerprint)))
        differing = [
            f"{key} {ours.get(key)!r} in the store, {theirs.get(key)!r} asked for"
            for key in {**ours, **theirs}
            if ours.get(key) != theirs.get(key)
        ]
        if differing:
            raise UserError(
                f"{self.location}: expected {self.ALIKE}, found another: {'; '.join(differing)}. "
                f"Use another {self.FLAG}"
            )

    def part_name(self, mode: str, video_ids: Iterable[str], made_by: str = "plan") -> str:
        """The name of a shard: the same plan gives the same name.

        A planned shard is named after its plan, of which it may hold less; so what is made of shards later
        is named apart from them by what made it.
        """
        key = json.dumps([self.fingerprint, mode, made_by, *video_ids], sort_keys=True)
        return f"part-{mode}-{hashlib.blake2b(key.encode(), digest_size=10).hexdigest()}.parquet"

    def commit(self, part_name: str, mode: str, videos: Sequence[VideoFeatures]) -> None:
        """Write one shard: it is there whole when this returns, and not at all before."""
        clips, width = videos[0].features.shape
        table = pa.table(
            {
                "video_id": pa.array([video.video_id for video in videos], pa.string()),
                "mode": pa.array([mode] * len(videos), pa.string()),
                "features": _tensor_column([video.features for video in videos], np.float16, (clips, width)),
                "positions": _tensor_column(
                    [video.positions for video in videos], np.float32, (clips, len(POSITION_FIELDS))
                ),
                **{
                    field.name: pa.array([getattr(video.geometry, field.name) for video in videos], field.type)
                    for field in GEOMETRY
                },
            }
        )
        self.write(table, self.FOLDER, part_name)

    def enter_failures(self, failures: Sequence[Failure]) -> None:
        """Append entries to the ledger; the newest attempt at a video counts."""
        if not failures:
            return
        table = pa.Table.from_pylist([vars(failure) for failure in failures], schema=_LEDGER)
        key = json.dumps([vars(failure) for failure in failures], sort_keys=True)
        self.write(table, "failures", f"part-{hashlib.blake2b(key.encode(), digest_size=10).hexdigest()}.parquet")

    def done(self, mode: str) -> set[str]:
        """Ids of the videos whose clips of this mode are stored."""
        found = self._read_parts(f"{self.FOLDER}/part-{mode}-", ["video_id"])
        return set() if found is None else set(found["video_id"].to_pylist())

    def failures(self) -> list[Failure]:
        """The ledger: the newest entry of every video that is still without features."""
        entries = self._read_parts("failures/part-", _LEDGER.names)
        if entries is None:
            return []
        newest: dict[tuple[str, str], Failure] = {}
        for row in entries.sort_by("attempts").to_pylist():
            newest[row["video_id"], row["mode"]] = Failure(**row)
        done = {mode: self.done(mode) for mode in MODES}
        kept = [entry for (video_id, mode), entry in newest.items() if video_id not in done[mode]]
        return sorted(kept, key=lambda entry: (entry.video_id, entry.mode))

    def replace_videos(self, corpus: pa.Table) -> bool:
        """Bring videos.parquet up to date with the corpus; True if that changed anything.

        Rows of videos that the corpus does not name are kept. A video that the corpus names again gets
        the corpus's label, group, split and columns: a corrected manifest corrects the store.
        """
        before = self.videos()
        named = set(corpus["video_id"].to_pylist())
        others = pa.array([video_id not in named for video_id in before["video_id"].to_pylist()], pa.bool_())
        kept = before.filter(others).drop_columns(GEOMETRY.names)
        fresh = pa.concat_tables([corpus, kept], promote_options="permissive")
        measured = self.measured()
        for field in GEOMETRY:
            values = [measured.get(video_id, {}).get(field.name) for video_id in fresh["video_id"].to_pylist()]
            fresh = fresh.append_column(field, pa.array(values, field.type))
        own = [name for name in fresh.column_names if name not in _VIDEOS.names]
        fresh = fresh.select([*_VIDEOS.names, *own]).sort_by("video_id").combine_chunks()
        if before.equals(fresh):
            return False
        self.write(fresh, "videos.parquet")
        return True

    def videos(self) -> pa.Table:
        """videos.parquet; no rows where a run died before it could write it."""
        filesystem, path = filesystem_of(join(self.location, "videos.parquet"))
        if not exists(join(self.location, "videos.parquet")):
            return _VIDEOS.empty_table()
        with filesystem.open_input_file(path) as file:
            return pq.read_table(file).replace_schema_metadata(None)

    def feature_width(self) -> int | None:
        """D, from the schema of any shard; None where there is none yet."""
        parts = self.parts("features/part-")
        return self.clip_shape(parts[0])[1] if parts else None

    def clip_shape(self, path: str) -> tuple[int, int]:
        """Clips of a video and feature width D of one shard, from its schema."""
        with self._opened_part(path) as file:
            return tuple(file.schema_arrow.field("features").type.shape)

    def read_part(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Some columns of one shard, its check sums verified.

        Raises
        ------
        UserError
            Where it is damaged.
        """
        with self._opened_part(path) as file:
            return file.read(columns)

    @contextmanager
    def _opened_part(self, path: str) -> Iterator[pq.ParquetFile]:
        filesystem, _ = filesystem_of(self.location)
        try:
            with filesystem.open_input_file(path) as file:
                yield pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: expected a whole shard, found one that cannot be read ({str(error).splitlines()[0]}); "
                "delete it and extract again"
            ) from error

    def splits(self, name: str | None = None) -> dict[str, str]:
        """Side (train, validation or test) of every video in one split, by id; no entry for the others.

        Without a name: the split called `default`, else the first of several official ones.

        Raises
        ------
        UserError
            Where there is no split of this name.
        """
        videos = self.videos()
        by_id = dict(zip(videos["video_id"].to_pylist(), map(dict, videos["splits"].to_pylist()), strict=True))
        names = sorted({known for sides in by_id.values() for known in sides})
        if name is not None and name not in names:
            raise UserError(f"split: expected one of {', '.join(names) or 'none at all'}, found {name!r}")
        chosen = name or (DEFAULT if DEFAULT in names or not names else names[0])
        return {video_id: sides[chosen] for video_id, sides in by_id.items() if chosen in sides}

    def split_names(self) -> list[str]:
        """Names of the splits, in order; the one that counts where none is named comes first."""
        names = {name for sides in self.videos()["splits"].to_pylist() for name, _ in sides}
        return sorted(names, key=lambda name: (name != DEFAULT, name))

    def labels(self) -> dict[str, str]:
        """Label of every labelled video, by id."""
        videos = self.videos()
        pairs = zip(videos["video_id"].to_pylist(), videos["label"].to_pylist(), strict=True)
        return {video_id: label for video_id, label in pairs if label is not None}

    def groups(self) -> dict[str, str]:
        """Group of every video, by id; a video without one is its own group."""
        videos = self.videos()
        pairs = zip(videos["video_id"].to_pylist(), videos["group"].to_pylist(), strict=True)
        return {video_id: group or video_id for video_id, group in pairs}

    def size_bytes(self) -> int:
        return sum(file.size for file in list_files(self.location))

    def measured(self) -> dict[str, dict[str, Any]]:
        """Width, height, length and frame rate of every video with clips, from the shards themselves."""
        table = self._read_parts(f"{self.FOLDER}/part-", ["video_id", *GEOMETRY.names])
        return {} if table is None else {row["video_id"]: row for row in table.to_pylist()}

    def parts(self, prefix: str) -> list[str]:
        """Paths, on the store's file system, of the shards whose names below the store begin so."""
        folder, _, start = prefix.rpartition("/")
        infos = list_files(join(self.location, folder))
        return [i.path for i in infos if i.base_name.startswith(start) and i.base_name.endswith(".parquet")]

    def _read_parts(self, prefix: str, columns: list[str]) -> pa.Table | None:
        paths = self.parts(prefix)
        if not paths:
            return None
        filesystem, _ = filesystem_of(self.location)
        # As a data set: many small files of an object store are read at once.
        return pyarrow.dataset.dataset(paths, filesystem=filesystem, format="parquet").to_table(columns=columns)

    def write(self, table: pa.Table, *name: str) -> None:
        """Write one of the store's files, whole or not at all; its pages carry check sums."""
        with written_whole(join(self.location, *name)) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def _tensor_column(values: list[np.ndarray], dtype: type, shape: tuple[int, int]) -> pa.Array:
    stacked: np.ndarray = np.ascontiguousarray(np.stack(values), dtype)
    assert stacked.shape[1:] == shape
    return pa.FixedShapeTensorArray.from_numpy_ndarray(stacked)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
