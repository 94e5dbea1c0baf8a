"""Maintenance of a store: resolve overlapping shards, merge small ones, verify all of them.

Functions that write need the write lease of the store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa

from scale_ray.clips import MODES
from scale_ray.errors import UserError
from scale_ray.files.locations import check_within, files_in, filesystem_of, join
from scale_ray.store.clip_lists import CLIP_COLUMNS, read_clip_lists, width_of
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import GEOMETRY
from scale_ray.store.shard_store import ShardStore

# Shards below this size are merged into shards of about this size.
COMPACT_BYTES = 256 * 2**20


def repair(store: ShardStore, *, others_write: bool = False) -> None:
    """Remove what a run that died may have left: unfinished files, and shards that hold the same videos.

    If others write at the same time, of other parts, unfinished files are left: they may be theirs.

    A compaction that dies between writing the merged shard and deleting its sources leaves both. Of overlapping shards,
    the one with the most videos stays, and each of the others keeps only the videos that no earlier one holds.
    """
    for folder in ("", store.FOLDER, "failures", "clips", "leases", "leases/exclusive"):
        check_within(join(store.location, folder) if folder else store.location, store.location)
        if not others_write:
            _delete_unfinished(join(store.location, folder) if folder else store.location)
    for mode in MODES:
        tables = store.videos_by_part(f"part-{mode}-")
        ids_by_path = {path: table["video_id"].to_pylist() for path, table in tables.items()}
        if sum(map(len, ids_by_path.values())) == len(set().union(*ids_by_path.values())):
            continue
        seen: set[str] = set()
        written: set[str] = set()
        superseded: list[str] = []
        for path, ids in sorted(ids_by_path.items(), key=lambda item: (-len(item[1]), item[0])):
            own = [video_id for video_id in ids if video_id not in seen]
            seen |= set(ids)
            if len(own) == len(ids):
                continue
            if own:
                rest = store.read_part(path).filter(pa.array([video_id in set(own) for video_id in ids], pa.bool_()))
                written.add(store.part_name(mode, own, "rest"))
                store.write(rest, store.FOLDER, store.part_name(mode, own, "rest"))
            superseded.append(path)
        _delete(store, superseded, written)


def _delete_unfinished(folder: str) -> None:
    filesystem, _ = filesystem_of(folder)
    for info in files_in(folder):
        if info.base_name.endswith(".unfinished"):
            filesystem.delete_file(info.path)


def remove_videos(store: ShardStore, video_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Take everything of some videos out of the shards; returns the modes that each of them had.

    A shard is replaced as a whole by one of the same name without these videos, or deleted if it holds no others. So a
    video has its old features or none, whenever this is interrupted.
    """
    removed: dict[str, tuple[str, ...]] = {}
    if not video_ids:
        return removed
    # The shards of vectors come after those of their clips, since they mark videos as done.
    for folder in ("clips", store.FOLDER):
        for mode in MODES:
            for path in store.parts(f"{folder}/part-{mode}-"):
                ids = store.read_part(path, ["video_id"])["video_id"].to_pylist()
                stays = pa.array([video_id not in video_ids for video_id in ids], pa.bool_())
                if all(stays.to_pylist()):
                    continue
                rest = store.read_part(path).filter(stays)
                if len(rest):
                    store.write(rest, folder, path.rpartition("/")[2])
                else:
                    _delete(store, [path], set())
                for video_id in dict.fromkeys(ids):
                    if video_id in video_ids and mode not in removed.get(video_id, ()):
                        removed[video_id] = (*removed.get(video_id, ()), mode)
    return removed


def compact(store: FeatureStore) -> tuple[int, int]:
    """Merge small shards of each mode; return the number of shards before and after."""
    before = len(store.parts("features/part-"))
    for mode in MODES:
        for paths in _batches(store, mode):
            merged = _joined(store, paths).sort_by("video_id")
            name = store.part_name(mode, merged["video_id"].to_pylist(), "merger")
            store.write(merged, "features", name)
            _delete(store, paths, {name})
    return before, len(store.parts("features/part-"))


def verify(store: FeatureStore) -> list[str]:
    """Read every shard completely, including its checksums; return one line per fault."""
    faults: list[str] = []
    known = set(store.videos()["video_id"].to_pylist())
    shapes: dict[str, set[tuple[int, int]]] = {}
    for mode in MODES:
        seen: dict[str, str] = {}
        for path in store.parts(f"features/part-{mode}-"):
            name = path.rpartition("/")[2]
            try:
                table = store.read_part(path)
            except UserError as error:
                faults.append(str(error))
                continue
            if not _is_shard(table.schema):
                faults.append(f"{name}: expected the columns of a shard, found others; delete it and extract again")
                continue
            faults += _faults(table, mode, name, shapes.setdefault(mode, set()))
            for video_id in table["video_id"].to_pylist():
                if video_id in seen:
                    faults.append(f"{name}: holds {video_id!r}, which {seen[video_id]} also holds")
                if video_id not in known:
                    faults.append(f"{name}: holds {video_id!r}, which is not in videos.parquet")
                seen[video_id] = name
    for mode, mode_shapes in shapes.items():
        if len(mode_shapes) > 1:
            faults.append(f"shards of mode {mode} differ in shape: {sorted(mode_shapes)}")
    return faults


def unreadable(store: FeatureStore) -> list[str]:
    """Paths of the shards whose videos and sizes cannot be read."""
    paths = []
    for path in store.parts("features/part-"):
        try:
            store.read_part(path, ["video_id", *GEOMETRY.names])
            store.width_of_part(path)
        except UserError:
            paths.append(path)
    return paths


def _is_shard(schema: pa.Schema) -> bool:
    """Whether these are the columns that the store writes; the feature width may differ."""
    types = dict(zip(schema.names, schema.types, strict=True))
    plain = {"video_id": pa.string(), "mode": pa.string(), **{field.name: field.type for field in GEOMETRY}}
    if set(types) != {*plain, *CLIP_COLUMNS} or any(types[name] != type_ for name, type_ in plain.items()):
        return False
    try:
        return all(width_of(schema, name, "") for name in CLIP_COLUMNS)
    except UserError:
        return False


def _joined(store: FeatureStore, paths: list[str]) -> pa.Table:
    """The videos of several shards; a damaged one is refused, since deleting it later would delete the others too."""
    tables = [store.read_part(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        for column in CLIP_COLUMNS:
            read_clip_lists(table, column, path)
        if not table.schema.equals(tables[0].schema):
            raise UserError(f"{path}: expected the columns of {paths[0]}, found others; `--verify` lists the faults")
    return pa.concat_tables(tables)


def _delete(store: ShardStore, paths: list[str], written: set[str]) -> None:
    """Delete shards whose videos are now in others, except those just written under the same name."""
    filesystem, _ = filesystem_of(store.location)
    check_within(join(store.location, store.FOLDER), store.location)
    for path in paths:
        if path.rpartition("/")[2] not in written:
            filesystem.delete_file(path)


def _faults(table: pa.Table, mode: str, name: str, shapes: set[tuple[int, int]]) -> list[str]:
    """The faults of one shard, called `name`; adds the shapes of its videos' features to `shapes`."""
    faults = []
    if set(table["mode"].to_pylist()) - {mode}:
        faults.append(f"{name}: holds clips of another mode than {mode}")
    try:
        features, positions = (read_clip_lists(table, column, name) for column in CLIP_COLUMNS)
    except UserError as error:
        return [*faults, str(error)]
    shapes |= {(int(clips), features.values.shape[1]) for clips in np.unique(features.lengths)}
    for column, lists in zip(CLIP_COLUMNS, (features, positions), strict=True):
        infinite = np.flatnonzero(~np.isfinite(lists.values).all(axis=1))
        if len(infinite):
            row = int(np.searchsorted(np.cumsum(lists.lengths), infinite[0], side="right"))
            faults.append(f"{name}: holds {column} that are not finite, for example of {_id(table, row)}")
    unequal = np.flatnonzero(features.lengths != positions.lengths)
    if len(unequal):
        faults.append(f"{name}: holds features and positions of different clips of {_id(table, int(unequal[0]))}")
    return faults


def _id(table: pa.Table, row: int) -> str:
    return repr(table["video_id"][row].as_py())


def _batches(store: FeatureStore, mode: str) -> Iterator[list[str]]:
    """Groups of small shards that together have about the target size."""
    batch: list[str] = []
    size_bytes = 0
    filesystem, _ = filesystem_of(store.location)
    for path in store.parts(f"features/part-{mode}-"):
        part_bytes = filesystem.get_file_info(path).size
        if part_bytes >= COMPACT_BYTES:
            continue
        batch.append(path)
        size_bytes += part_bytes
        if size_bytes >= COMPACT_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if len(batch) > 1:
        yield batch
