"""What all stores have in common: a header with a fingerprint, immutable shards, a ledger and a table of videos.

Feature stores and vector stores derive from it; they differ in what their shards hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from scale_ray.clips import MODES
from scale_ray.corpus import DEFAULT_SPLIT
from scale_ray.errors import UserError, first_line
from scale_ray.files.locations import (
    absolute,
    atomic_write,
    check_within,
    exists,
    files_in,
    filesystem_of,
    first_answer,
    join,
    list_files,
)
from scale_ray.files.small_files import check_types, read_json
from scale_ray.files.tables import open_parquet, read_parquet, read_parquet_files, write_parquet
from scale_ray.hashing import digest
from scale_ray.store.schema import GEOMETRY, LEDGER, VIDEOS, Failure, VideoFeatures
from scale_ray.store.shard_index import ShardIndex

# What the index holds of the videos in shards.
_IN_PARTS = pa.schema([("video_id", pa.string()), *GEOMETRY])


class ShardStore:
    """A store at a folder or URI.

    Opening does not write anything; `create` makes a new store or checks that an existing one fits.
    `loading_options` are the options that the backbone was loaded with: the fingerprint identifies its weights,
    these say where to find them.

    Raises
    ------
    UserError
        On opening, if there is no store, a damaged one or one of another format.
    """

    # The header's file name, what must be in its fingerprint, the folder of the shards, and the words for messages.
    HEADER: str
    FINGERPRINT: Mapping[str, type] = MappingProxyType({})
    FOLDER: str
    KIND: str
    MADE_BY: str
    CONTENTS: str
    FLAG: str
    # The version of the format, and what the header says of the shards besides.
    FORMAT: int
    DESCRIPTION: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, location: str) -> None:
        self.location = absolute(location)
        header = join(self.location, self.HEADER)
        if not first_answer(exists, header):
            raise UserError(f"expected {self.KIND} (made by `scale-ray {self.MADE_BY}`), found none at {location}")
        kind = f"the header of {self.KIND}"
        described = read_json(header, kind, {"format": Any})
        if (version := described.get("format")) != self.FORMAT or type(version) is not int:
            raise UserError(f"{header}: expected store format {self.FORMAT}, found {version!r}{self._advice(version)}")
        check_types(described, header, kind, {"fingerprint": dict, "made_with": dict | None})
        check_types(described["fingerprint"], header, f"{kind} and a fingerprint", self.FINGERPRINT)
        self.fingerprint: dict[str, Any] = described["fingerprint"]
        self.loading_options: dict[str, Any] = described.get("made_with") or {}
        self._left_out: frozenset[str] = frozenset()
        self._index = ShardIndex(lambda path: self.read_part(path, ["video_id", *GEOMETRY.names]))
        self._videos: tuple[tuple[Any, ...], pa.Table] | None = None

    @classmethod
    def create(
        cls, location: str, fingerprint: Mapping[str, Any], loading_options: Mapping[str, Any] | None = None
    ) -> Self:
        """Open the store with this fingerprint at `location`; make it if there is none.

        Raises
        ------
        UserError
            If the store there has another fingerprint: the message names the differences.
        """
        if not cls.is_store(location):
            # Writers of several parts may make it at the same time: the header is the first file of each.
            others = [file for file in list_files(location) if not file.base_name.startswith(f"{cls.HEADER}.")]
            if not cls.is_store(location):
                if others:
                    raise UserError(f"expected {cls.KIND} or an empty folder, found other files at {location}")
                cls._write_header(location, fingerprint, loading_options)
        store = cls(location)
        store.check_fingerprint(fingerprint)
        return store

    @classmethod
    def _write_header(
        cls, location: str, fingerprint: Mapping[str, Any], loading_options: Mapping[str, Any] | None
    ) -> None:
        described = {
            "format": cls.FORMAT,
            **cls.DESCRIPTION,
            "fingerprint": fingerprint,
            "made_with": dict(loading_options or {}),
        }
        with atomic_write(join(absolute(location), cls.HEADER)) as file:
            file.write(json.dumps(described, indent=2).encode())

    @classmethod
    def is_store(cls, location: str) -> bool:
        """Whether there is a store of this kind."""
        return first_answer(exists, join(absolute(location), cls.HEADER))

    @classmethod
    def _advice(cls, version: Any) -> str:
        """What to do about a store of another format."""
        if type(version) is not int:
            return ""
        if version > cls.FORMAT:
            return ", made by a newer scale-ray: update this one"
        return f", made by an older scale-ray: {cls.MADE_BY} again, to another {cls.FLAG}"

    def check_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise a UserError that names the differences if the store has another fingerprint."""
        stored, asked = _flat(self.fingerprint), _flat(json.loads(json.dumps(fingerprint)))
        differing = [
            f"{key} {stored.get(key)!r} in the store, {asked.get(key)!r} asked for"
            for key in {**stored, **asked}
            if stored.get(key) != asked.get(key)
        ]
        if differing:
            raise UserError(
                f"{self.location}: expected {self.CONTENTS}, found another: {'; '.join(differing)}. "
                f"Use another {self.FLAG}"
            )

    # Shards

    def part_name(self, mode: str, video_ids: Iterable[str], made_by: str = "plan") -> str:
        """The file name of a shard: the same plan gives the same name.

        A planned shard is named after the ids planned for it; some may have failed. Shards written later
        (merged, repaired) include `made_by` in the hash, so names never collide.
        """
        key = json.dumps([self.fingerprint, mode, made_by, *video_ids], sort_keys=True)
        return f"part-{mode}-{digest(key)}.parquet"

    def commit(self, part_name: str, mode: str, videos: Sequence[VideoFeatures]) -> None:
        """Write one shard atomically."""
        raise NotImplementedError

    def stored_ids(self, mode: str) -> set[str]:
        """Ids of the videos whose clips of this mode are stored."""
        return set(self._videos_in_parts(f"part-{mode}-")["video_id"].to_pylist())

    def geometries(self) -> dict[str, dict[str, Any]]:
        """Height, width, duration and frame rate of every video with clips, by id, read from the shards."""
        return {row["video_id"]: row for row in self._videos_in_parts("part-").to_pylist()}

    def videos_by_part(self, prefix: str) -> dict[str, pa.Table]:
        """Ids and geometry of the videos of each shard whose file name begins with `prefix`, by its path."""
        return self._index.tables(self._part_infos(f"{self.FOLDER}/{prefix}"))

    def _videos_in_parts(self, prefix: str) -> pa.Table:
        tables = list(self.videos_by_part(prefix).values())
        if not tables:
            return _IN_PARTS.empty_table()
        try:
            return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        except pa.ArrowException as error:
            raise UserError(
                f"{join(self.location, self.FOLDER, prefix)}*: expected files of one kind, found: {first_line(error)}"
            ) from error

    def parts(self, prefix: str) -> list[str]:
        """Paths of the shards whose name below the store begins with `prefix`, on the store's file system."""
        return [info.path for info in self._part_infos(prefix)]

    def _part_infos(self, prefix: str) -> list[fs.FileInfo]:
        folder, _, start = prefix.rpartition("/")
        infos = [info for info in files_in(join(self.location, folder)) if info.base_name.startswith(start)]
        return [info for info in infos if info.path.endswith(".parquet") and info.path not in self._left_out]

    def leave_out(self, paths: Iterable[str]) -> None:
        """From now on, take these shards for absent: they cannot be read."""
        self._left_out |= set(paths)

    def read_part(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Some columns of one shard, with its checksums verified.

        Raises
        ------
        UserError
            If it is damaged.
        """
        with self._opened_part(path) as file:
            table = file.read(columns)
        if absent := [name for name in columns or () if name not in table.column_names]:
            raise UserError(f"{path}: expected a shard with columns {', '.join(columns or ())}, found no {absent[0]}")
        return table

    def write(self, table: pa.Table, *name: str) -> None:
        """Write one of the store's files atomically; its pages carry checksums."""
        check_within(join(self.location, *name[:-1]), self.location)
        location = join(self.location, *name)
        with atomic_write(location) as file:
            write_parquet(table, file)
        self._index.forget(filesystem_of(location)[1])

    def size_bytes(self) -> int:
        """Bytes of all files of the store."""
        return sum(file.size for file in list_files(self.location))

    # The ledger

    def add_failures(self, failures: Sequence[Failure]) -> None:
        """Append entries to the ledger; the newest attempt at a video counts."""
        if not failures:
            return
        rows = [vars(failure) for failure in failures]
        name = f"part-{digest(json.dumps(rows, sort_keys=True))}.parquet"
        self.write(pa.Table.from_pylist(rows, schema=LEDGER), "failures", name)

    def failures(self) -> list[Failure]:
        """The ledger: the newest entry of every video that is still without clips."""
        entries = self.read_parts("failures/part-", LEDGER.names)
        if entries is None:
            return []
        place = join(self.location, "failures")
        _check_columns(entries, place, "the ledger", LEDGER, ["video_id", "mode", "attempts"])
        newest: dict[tuple[str, str], Failure] = {}
        for row in entries.sort_by("attempts").to_pylist():
            newest[row["video_id"], row["mode"]] = Failure(**row)
        stored = {mode: self.stored_ids(mode) for mode in MODES}
        kept = [entry for (video_id, mode), entry in newest.items() if video_id not in stored[mode]]
        return sorted(kept, key=lambda entry: (entry.video_id, entry.mode))

    # The table of videos

    def replace_videos(self, corpus: pa.Table) -> bool:
        """Bring videos.parquet up to date with the corpus; True if that changed anything.

        Rows of videos that the corpus does not name are kept. A video that the corpus names gets the corpus's
        label, group, splits and columns: a corrected manifest corrects the store. Size, duration and frame rate are
        those that were measured, whatever the corpus says.
        """
        corpus = corpus.drop_columns([name for name in GEOMETRY.names if name in corpus.column_names])
        before = self.videos()
        others = pc.invert(pc.is_in(before["video_id"], corpus["video_id"]))
        kept = before.filter(others).drop_columns(GEOMETRY.names)
        fresh = pa.concat_tables([corpus, kept], promote_options="permissive")
        measured = self._videos_in_parts("part-")
        rows = pc.index_in(fresh["video_id"], measured["video_id"])
        for field in GEOMETRY:
            fresh = fresh.append_column(field, pc.take(measured[field.name], rows))
        own = [name for name in fresh.column_names if name not in VIDEOS.names]
        fresh = fresh.select([*VIDEOS.names, *own]).sort_by("video_id").combine_chunks()
        if before.equals(fresh):
            return False
        self.write(fresh, "videos.parquet")
        self._videos = None
        return True

    def forget_videos(self) -> None:
        """Read videos.parquet again when it is needed next, even if its time and size have not changed."""
        self._videos = None

    def videos(self) -> pa.Table:
        """videos.parquet; no rows if a run died before it could write it. Read again when the file has changed."""
        filesystem, path = filesystem_of(join(self.location, "videos.parquet"))
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            return VIDEOS.empty_table()
        version = (info.mtime_ns, info.size)
        # Some servers do not report when a file changed.
        if self._videos is None or self._videos[0] != version or info.mtime_ns is None:
            try:
                with filesystem.open_input_file(path) as file:
                    table = read_parquet(file, path).replace_schema_metadata(None)
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"{path}: expected the table of videos, found one that cannot be read ({first_line(error)}); "
                    f"delete it and {self.MADE_BY} again"
                ) from error
            _check_columns(table, path, "the table of videos", VIDEOS, ["video_id"])
            self._videos = version, table
        return self._videos[1]

    def splits(self, name: str | None = None) -> dict[str, str]:
        """Subset (train, validation or test) of every video in one split, by id; no entry for the others.

        Without a name: the split called `default`, otherwise the first of several official ones.

        Raises
        ------
        UserError
            If there is no split of this name.
        """
        by_id = {video_id: dict(splits) for video_id, splits in self._column("splits").items()}
        names = self.split_names()
        if name is not None and name not in names:
            raise UserError(f"split: expected one of {', '.join(sorted(names)) or 'none at all'}, found {name!r}")
        chosen = name or next(iter(names), DEFAULT_SPLIT)
        return {video_id: splits[chosen] for video_id, splits in by_id.items() if chosen in splits}

    def split_names(self) -> list[str]:
        """Names of the splits; the one that is used if none is named comes first."""
        names = {name for splits in self._column("splits").values() for name, _ in splits}
        return sorted(names, key=lambda name: (name != DEFAULT_SPLIT, name))

    def labels(self) -> dict[str, str]:
        """Label of every labelled video, by id."""
        return {video_id: label for video_id, label in self._column("label").items() if label is not None}

    def groups(self) -> dict[str, str]:
        """Group of every video, by id; a video without one is its own group."""
        return {video_id: group or video_id for video_id, group in self._column("group").items()}

    def _column(self, name: str) -> dict[str, Any]:
        videos = self.videos()
        return dict(zip(videos["video_id"].to_pylist(), videos[name].to_pylist(), strict=True))

    @contextmanager
    def _opened_part(self, path: str) -> Iterator[Any]:
        filesystem, _ = filesystem_of(self.location)
        try:
            with filesystem.open_input_file(path) as file:
                yield open_parquet(file, path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: expected a whole shard, found one that cannot be read ({first_line(error)}); "
                "delete it and extract again"
            ) from error

    def read_parts(self, prefix: str, columns: list[str]) -> pa.Table | None:
        paths = self.parts(prefix)
        if not paths:
            return None
        filesystem, _ = filesystem_of(self.location)
        try:
            # As a dataset, so that many small files of an object store are read concurrently.
            return read_parquet_files(paths, filesystem, join(self.location, prefix), columns)
        except (pa.ArrowException, OSError) as error:
            for path in paths:
                self.read_part(path, columns)  # names the damaged one
            raise UserError(
                f"{join(self.location, prefix)}*: expected files of one kind, found: {first_line(error)}"
            ) from error


def _check_columns(table: pa.Table, place: str, kind: str, schema: pa.Schema, complete: Sequence[str]) -> None:
    """Check the columns of a table: their types, and that those of `complete` have a value in every row.

    Raises
    ------
    UserError
        If a column is missing, or has another type or no value.
    """
    for field in schema:
        if field.name not in table.column_names:
            raise UserError(f"{place}: expected {kind} with a column {field.name}, found none")
        column = table[field.name]
        # A column without any value may have been written as one of no type.
        if column.type != field.type and not pa.types.is_null(column.type):
            raise UserError(f"{place}: expected {kind} with {field.name} of type {field.type}, found {column.type}")
        if field.name in complete and column.null_count:
            raise UserError(f"{place}: expected {kind} with a {field.name} in every row, found a row without")


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
