"""Where the videos are: folders, globs and manifests; their identities, labels and splits."""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs

from scale_ray.errors import UserError
from scale_ray.locations import absolute, filesystem_of, is_uri, join, list_files

SPLITS = ("train", "validation", "test")
_SPLIT_ALIASES = {"val": "validation", "valid": "validation", "training": "train", "testing": "test"}
_MANIFEST_SUFFIXES = (".csv", ".parquet")
# Share of the videos that a corpus without a split column gives to its test split.
_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Corpus:
    """The videos of one source.

    `videos` has a row a video, in the order of `video_id`: `video_id`, `path`, `size_bytes` (null for a
    missing file), `label`, `group` (null where unknown), `split`, and a manifest's own columns.
    `split_note` says where the splits come from.
    """

    source: str
    videos: pa.Table
    split_note: str


def read_corpus(source: str, *, leave_out: str | None = None) -> Corpus:
    """List the videos of a folder (class per subfolder), a glob or a CSV or Parquet manifest.

    Every file of a folder counts but hidden ones: what is no video is found out, and said, when it is
    opened. `leave_out` names a folder inside it that holds something else, such as the store.

    Raises
    ------
    UserError
        Where there is nothing, or a manifest lacks its `path` column or has an unknown split.
    """
    if any(letter in source for letter in "*?["):
        rows = _from_glob(source)
    elif source.lower().endswith(_MANIFEST_SUFFIXES):
        rows = _from_manifest(source)
    else:
        rows = _from_folder(source, leave_out)
    repeated = [video_id for video_id, count in Counter(rows["video_id"].to_pylist()).items() if count > 1]
    if repeated:
        raise UserError(f"expected every video once, found {repeated[0]!r} more than once in {source}")
    rows = rows.sort_by("video_id")
    rows, note = _with_splits(rows, source)
    return Corpus(source, rows, note)


def hash_share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone: the draw behind every split of ours."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def _from_folder(source: str, leave_out: str | None) -> pa.Table:
    filesystem, root = filesystem_of(source)
    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise UserError(f"expected a folder, a glob or a manifest of videos, found nothing at {source}")
    if info.type == fs.FileType.File:
        raise UserError(f"expected a folder, a glob or a manifest (.csv, .parquet), found the file {source}")
    apart = filesystem_of(leave_out)[1].rstrip("/") + "/" if leave_out else None
    ids, paths, sizes = [], [], []
    for file in list_files(source):
        video_id = posixpath.relpath(file.path, root)
        hidden = any(part.startswith(".") for part in video_id.split("/"))
        if hidden or (apart and file.path.startswith(apart)):
            continue
        ids.append(video_id)
        paths.append(join(source, video_id) if is_uri(source) else file.path)
        sizes.append(file.size)
    if not ids:
        raise UserError(f"expected videos, found an empty folder at {source}")
    return _listed(ids, paths, sizes)


def _from_glob(source: str) -> pa.Table:
    if is_uri(source):
        raise UserError(f"expected a local glob, found {source}; give the folder or a manifest instead")
    pattern = absolute(source)
    # Identities are relative to the part before the first wildcard, so that a longer glob keeps them.
    fixed = []
    for part in Path(pattern).parts[:-1]:
        if any(letter in part for letter in "*?["):
            break
        fixed.append(part)
    root = str(Path(*fixed))
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise UserError(f"expected videos, found no file that matches {source}")
    ids = [os.path.relpath(path, root) for path in paths]
    return _listed(ids, paths, [os.path.getsize(path) for path in paths])


def _listed(ids: list[str], paths: list[str], sizes: list[int]) -> pa.Table:
    labels = [posixpath.dirname(video_id) or None for video_id in ids]
    return pa.table(
        {
            "video_id": pa.array(ids, pa.string()),
            "path": pa.array(paths, pa.string()),
            "size_bytes": pa.array(sizes, pa.int64()),
            "label": pa.array(labels, pa.string()),
            "group": pa.nulls(len(ids), pa.string()),
        }
    )


def _from_manifest(source: str) -> pa.Table:
    filesystem, path = filesystem_of(source)
    if filesystem.get_file_info(path).type != fs.FileType.File:
        raise UserError(f"expected a manifest of videos, found no file at {source}")
    try:
        with filesystem.open_input_file(path) as file:
            manifest = pq.read_table(file) if path.lower().endswith(".parquet") else pyarrow.csv.read_csv(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"expected a readable manifest, found in {source}: {error}") from error
    if "path" not in manifest.column_names:
        raise UserError(f"{source}: expected a column 'path', found {', '.join(manifest.column_names) or 'none'}")
    if not len(manifest):
        raise UserError(f"expected videos, found no row in {source}")
    root = posixpath.dirname(source if is_uri(source) else absolute(source))
    named = [str(value) for value in manifest["path"].to_pylist()]
    paths = [value if is_uri(value) or os.path.isabs(value) else join(root, value) for value in named]
    own_ids = next((name for name in ("video_id", "id") if name in manifest.column_names), None)
    ids = [str(value) for value in manifest[own_ids].to_pylist()] if own_ids else named
    columns = {
        "video_id": pa.array(ids, pa.string()),
        "path": pa.array(paths, pa.string()),
        "size_bytes": pa.array([_size_of(value) for value in paths], pa.int64()),
        "label": _text_column(manifest, "label"),
        "group": _text_column(manifest, "group"),
    }
    for name in manifest.column_names:
        if name not in columns and name not in ("path", own_ids):
            columns[name] = manifest[name]
    return pa.table(columns)


def _size_of(path: str) -> int | None:
    filesystem, inner = filesystem_of(path)
    return filesystem.get_file_info(inner).size


def _text_column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(len(table), pa.string())
    values = ["" if value is None else str(value) for value in table[name].to_pylist()]
    return pa.array([value or None for value in values], pa.string())


def _with_splits(videos: pa.Table, source: str) -> tuple[pa.Table, str]:
    if "split" in videos.column_names:
        splits = []
        for row, value in enumerate(videos["split"].to_pylist()):
            split = _SPLIT_ALIASES.get(str(value).lower(), str(value).lower())
            if split not in SPLITS:
                raise UserError(
                    f"{source}: expected a split of {', '.join(SPLITS)}, "
                    f"found {value!r} for {videos['video_id'][row].as_py()!r}"
                )
            splits.append(split)
        videos = videos.set_column(videos.column_names.index("split"), "split", pa.array(splits, pa.string()))
        _refuse_straddling_groups(videos, source)
        return videos, "splits as given"
    labels, groups = videos["label"].to_pylist(), videos["group"].to_pylist()
    if not any(labels):
        splits, note = ["train"] * len(labels), "no labels: all videos are training videos"
    else:
        keys = [group or video_id for group, video_id in zip(groups, videos["video_id"].to_pylist(), strict=True)]
        splits = [
            "test" if label and hash_share(key) < _TEST_SHARE else "train"
            for key, label in zip(keys, labels, strict=True)
        ]
        by = "group" if any(groups) else "video"
        note = f"no split given: about 80 % train and 20 % test by a hash of the {by}"
    return videos.append_column("split", pa.array(splits, pa.string())), note


def _refuse_straddling_groups(videos: pa.Table, source: str) -> None:
    seen: dict[str, str] = {}
    for group, split in zip(videos["group"].to_pylist(), videos["split"].to_pylist(), strict=True):
        if group is not None and seen.setdefault(group, split) != split:
            raise UserError(
                f"{source}: expected each group in one split, found group {group!r} in {seen[group]} and {split}"
            )
