"""Maintenance of a store: resolve overlapping shards, merge small ones, verify all of them.

Functions that write need the write lease of the store.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from scale_ray.clips import MODES
from scale_ray.errors import UserError
from scale_ray.files.locations import check_within, files_in, filesystem_of, join
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import GEOMETRY
from scale_ray.store.shard_store import ShardStore

# Shards below this size are merged into shards of about this size.
COMPACT_BYTES = 256 * 2**20


def repair(store: ShardStore) -> None:
    """Remove what a run that died may have left: unfinished files, and shards that hold the same videos.

    A compaction that dies between writing the merged shard and deleting its sources leaves both. Of overlapping shards,
    the one with the most videos stays, and each of the others keeps only the videos that no earlier one holds.
    """
    filesystem, _ = filesystem_of(store.location)
    for folder in ("", store.FOLDER, "failures", "clips", "leases"):
        place = join(store.location, folder) if folder else store.location
        check_within(place, store.location)
        for info in files_in(place):
            if info.base_name.endswith(".unfinished"):
                filesystem.delete_file(info.path)
    for mode in MODES:
        paths = store.parts(f"{store.FOLDER}/part-{mode}-")
        ids_by_path = {path: store.read_part(path, ["video_id"])["video_id"].to_pylist() for path in paths}
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


def compact(store: FeatureStore) -> tuple[int, int]:
    """Merge small shards of each mode; return the number of shards before and after."""
    before = len(store.parts("features/part-"))
    for mode in MODES:
        for paths in _batches(store, mode):
            merged = pa.concat_tables([store.read_part(path) for path in paths]).sort_by("video_id")
            name = store.part_name(mode, merged["video_id"].to_pylist(), "merger")
            store.write(merged, "features", name)
            _delete(store, paths, {name})
    return before, len(store.parts("features/part-"))


def verify(store: FeatureStore) -> list[str]:
    """Read every shard completely, including its checksums; return one line per fault."""
    faults: list[str] = []
    known = set(store.videos()["video_id"].to_pylist())
    shapes: dict[str, set[tuple[int, ...]]] = {}
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
            faults += [f"{name}: {fault}" for fault in _faults(table, mode)]
            shapes.setdefault(mode, set()).add(tuple(table["features"].type.shape))
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
            store.clip_shape(path)
        except UserError:
            paths.append(path)
    return paths


def _is_shard(schema: pa.Schema) -> bool:
    """Whether these are the columns that the store writes; shapes may differ."""
    plain = {"video_id": pa.string(), "mode": pa.string(), **{field.name: field.type for field in GEOMETRY}}
    tensors = {"features": pa.float16(), "positions": pa.float32()}
    types = dict(zip(schema.names, schema.types, strict=True))
    return set(types) == {*plain, *tensors} and (
        all(types[name] == type_ for name, type_ in plain.items())
        and all(
            isinstance(types[name], pa.FixedShapeTensorType) and types[name].value_type == type_
            for name, type_ in tensors.items()
        )
    )


def _delete(store: ShardStore, paths: list[str], written: set[str]) -> None:
    """Delete shards whose videos are now in others, except those just written under the same name."""
    filesystem, _ = filesystem_of(store.location)
    check_within(join(store.location, store.FOLDER), store.location)
    for path in paths:
        if path.rpartition("/")[2] not in written:
            filesystem.delete_file(path)


def _faults(table: pa.Table, mode: str) -> Iterator[str]:
    if set(table["mode"].to_pylist()) - {mode}:
        yield f"holds clips of another mode than {mode}"
    for name in ("features", "positions"):
        values = np.concatenate([chunk.to_numpy_ndarray() for chunk in table[name].chunks])
        finite = np.isfinite(values).all(axis=(1, 2))
        if not finite.all():
            example = table["video_id"][int(np.argmin(finite))].as_py()
            yield f"holds {name} that are not finite, for example of {example!r}"


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
