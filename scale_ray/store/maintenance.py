"""A store's upkeep: overlapping shards resolved, small ones merged, every one verified.

What writes here needs the store's lease.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from scale_ray.clips import MODES
from scale_ray.errors import UserError
from scale_ray.locations import filesystem_of, list_files
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import GEOMETRY
from scale_ray.store.shard_store import ShardStore

# Shards below this are merged, into ones of about this size.
COMPACT_BYTES = 256 * 2**20


def repair(store: ShardStore) -> None:
    """What a run that died may have left: unfinished files, and shards that hold the same videos.

    A compaction that dies between writing the merged shard and deleting its parts leaves both. Of shards
    that overlap the one with the most videos stays; the others keep the videos that no shard before them
    holds.
    """
    filesystem, _ = filesystem_of(store.location)
    for info in list_files(store.location):
        if info.base_name.endswith(".unfinished"):
            filesystem.delete_file(info.path)
    for mode in MODES:
        paths = store.parts(f"{store.FOLDER}/part-{mode}-")
        held = {path: store.read_part(path, ["video_id"])["video_id"].to_pylist() for path in paths}
        if sum(map(len, held.values())) == len(set().union(*held.values())):
            continue
        seen: set[str] = set()
        written: set[str] = set()
        superseded: list[str] = []
        for path, ids in sorted(held.items(), key=lambda item: (-len(item[1]), item[0])):
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
    """Merge small shards of each mode; the number of shards before and after."""
    before = len(store.parts("features/part-"))
    for mode in MODES:
        for paths in _batches(store, mode):
            merged = pa.concat_tables([store.read_part(path) for path in paths]).sort_by("video_id")
            name = store.part_name(mode, merged["video_id"].to_pylist(), "merger")
            store.write(merged, "features", name)
            _delete(store, paths, {name})
    return before, len(store.parts("features/part-"))


def verify(store: FeatureStore) -> list[str]:
    """Read every shard whole, check sums included; a line for each thing that is wrong."""
    wrong: list[str] = []
    known = set(store.videos()["video_id"].to_pylist())
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for mode in MODES:
        seen: dict[str, str] = {}
        for path in store.parts(f"features/part-{mode}-"):
            name = path.rpartition("/")[2]
            try:
                table = store.read_part(path)
            except UserError as error:
                wrong.append(str(error))
                continue
            if not _is_shard(table.schema):
                wrong.append(f"{name}: has not the columns of a shard; delete it and extract again")
                continue
            wrong += [f"{name}: {what}" for what in _faults(table, mode)]
            shapes.setdefault(mode, set()).add(tuple(table["features"].type.shape))
            for video_id in table["video_id"].to_pylist():
                if video_id in seen:
                    wrong.append(f"{name}: holds {video_id!r}, which {seen[video_id]} holds, too")
                if video_id not in known:
                    wrong.append(f"{name}: holds {video_id!r}, which videos.parquet does not know")
                seen[video_id] = name
    wrong += [f"shards of mode {mode} differ in shape: {sorted(of)}" for mode, of in shapes.items() if len(of) > 1]
    return wrong


def _is_shard(schema: pa.Schema) -> bool:
    """Whether these are the columns that the store writes, shapes apart."""
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
    """Delete shards whose videos others hold by now, but none that was just written under its name."""
    filesystem, _ = filesystem_of(store.location)
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
            yield f"holds {name} that are not finite, such as those of {example!r}"


def _batches(store: FeatureStore, mode: str) -> Iterator[list[str]]:
    """Small shards that together make one of the wanted size."""
    together: list[str] = []
    size_bytes = 0
    filesystem, _ = filesystem_of(store.location)
    for path in store.parts(f"features/part-{mode}-"):
        part_bytes = filesystem.get_file_info(path).size
        if part_bytes >= COMPACT_BYTES:
            continue
        together.append(path)
        size_bytes += part_bytes
        if size_bytes >= COMPACT_BYTES:
            yield together
            together, size_bytes = [], 0
    if len(together) > 1:
        yield together
