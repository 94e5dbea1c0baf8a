"""Reads manifests: CSV or Parquet files that list videos with their labels, groups and splits."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
from pyarrow import fs

from scale_ray.corpus.splits import DEFAULT_SPLIT, SUBSETS, subset_of
from scale_ray.errors import UserError, first_line
from scale_ray.files.locations import (
    REQUESTS_AT_ONCE,
    check_from_data,
    filesystem_of,
    is_uri,
    join,
    parent,
    read_bytes,
    server_of,
    showable,
    with_options_of,
    without_options,
)
from scale_ray.files.tables import read_parquet

MANIFEST_SUFFIXES = (".csv", ".parquet")


@dataclass
class Video:
    """One video of a corpus and its annotations; `splits` is None or empty until a split is known."""

    video_id: str
    path: str
    size_bytes: int | None
    label: str | None = None
    labels: list[str] | None = None
    target: float | None = None
    group: str | None = None
    splits: dict[str, str] | None = None


_SPLIT_PREFIX = "split_"
_LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)
_BYTES = (
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    pa.types.is_binary_view,
)
# A server that gives the size of no file in this time is not asked again.
_PATIENCE_S = 20.0
_COLUMNS = tuple(field.name for field in dataclasses.fields(Video))


def read_manifest(source: str) -> tuple[list[Video], dict[str, pa.ChunkedArray], list[str]]:
    """Read the videos of a manifest, its additional columns, and notes for the user.

    Raises
    ------
    UserError
        If the manifest cannot be read, has no column `path` or no row, or holds an invalid value.
    """
    manifest, notes = _read_table(source)
    columns = {name: manifest[name].to_pylist() for name in manifest.column_names}
    root = parent(source)
    assert root is not None, source
    id_column = next((name for name in ("video_id", "id") if name in columns), "path")
    for name in dict.fromkeys(["path", id_column]):
        for row, value in enumerate(columns[name], 1):
            if _text(value) is None:
                raise UserError(f"{source}: expected a value for {name!r} in every row, found none in row {row}")
    locations = [str(value) for value in columns["path"]]
    paths = [_path_in(source, root, value, row) for row, value in enumerate(locations, 1)]
    notes += _note_on_blanks(locations, paths)
    splits = _given_splits(columns, source)
    given_sizes = columns.get("size_bytes", [None] * len(paths))
    numbers = [_number(value, "size_bytes", source, row) for row, value in enumerate(given_sizes, 1)]
    sizes, notes_on_servers = _sizes_of(paths, [None if size is None else int(size) for size in numbers], source)
    notes += notes_on_servers
    videos = [
        Video(str(_text(video_id)), path, size)
        for video_id, path, size in zip(columns[id_column], paths, sizes, strict=True)
    ]
    for row, video in enumerate(videos):
        video.label = _text(columns["label"][row]) if "label" in columns else None
        video.group = _text(columns["group"][row]) if "group" in columns else None
        video.labels = _texts(columns["labels"][row]) if "labels" in columns else None
        video.target = _number(columns["target"][row], "target", source, row + 1) if "target" in columns else None
        video.splits = splits[row]
    known = {id_column, *_COLUMNS, *(name for name in columns if _split_of(name) is not None)}
    return videos, {name: manifest[name] for name in columns if name not in known}, notes


def _read_table(source: str) -> tuple[pa.Table, list[str]]:
    """The table of a manifest, in which the columns that this package uses have their names, and notes for the user."""
    filesystem, path = filesystem_of(source)
    if filesystem.get_file_info(path).type != fs.FileType.File:
        raise UserError(f"expected a manifest of videos, found no file at {source}")
    data = read_bytes(source)
    is_parquet = without_options(source).lower().endswith(".parquet")
    try:
        table = read_parquet(io.BytesIO(data), source) if is_parquet else _read_csv(data, source)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{source}: expected a readable manifest, found: {first_line(error)}") from error
    given = table.column_names
    names = _own_names(given)
    table = table.rename_columns(names)
    if "path" not in names:
        raise UserError(f"{source}: expected a column 'path', found {', '.join(given) or 'none'}")
    notes = [f"column {old!r} is read as {new!r}" for old, new in zip(given, names, strict=True) if old != new]
    split_names = [name for name in map(_split_of, names) if name is not None]
    for kind, values in (("column", names), ("split", split_names)):
        for name, count in Counter(values).items():
            if count > 1:
                like = [repr(old) for old, new in zip(given, names, strict=True) if new == name and old != name]
                detail = f" ({', '.join(like)})" if like else ""
                raise UserError(f"{source}: expected every {kind} once, found {name!r} more than once{detail}")
    if "splits" in names and not pa.types.is_map(table["splits"].type):
        raise UserError(f"{source}: expected columns 'split' or 'split_NAME', found 'splits'")
    if not len(table):
        raise UserError(f"expected videos, found no rows in {source}")
    for index, name in enumerate(names):
        if _is_own(name):
            table = table.set_column(index, name, _checked(table[name], name, source))
    return table, notes


def _checked(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    """A column that this package uses; bytes become text. One value per row, but for `labels` and `splits`."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    several = name == "labels" and _is_one_of(column.type, _LISTS)
    type_ = column.type.value_type if several else column.type
    if pa.types.is_nested(type_) and name != "splits":
        hint = "; several labels belong in 'labels'" if name == "label" and _is_one_of(type_, _LISTS) else ""
        raise UserError(f"{source}: expected text or numbers in column {name!r}, found {type_}{hint}")
    if not _is_one_of(type_, _BYTES):
        return column
    try:
        return column.cast(pa.list_(pa.string()) if several else pa.string())
    except pa.ArrowException as error:
        raise UserError(f"{source}: expected text in UTF-8 in column {name!r}, found other bytes") from error


def _is_one_of(type_: pa.DataType, checks: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(check(type_) for check in checks)


def _read_csv(data: bytes, source: str) -> pa.Table:
    """The table of a CSV file; the columns that this package uses are text, so that a label 001 stays 001.

    A cell in quotes may hold line breaks. The separator is the comma, or the semicolon or tab that shows a column
    `path`.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{source}: expected text in UTF-8, found UTF-16")
    text = data.decode("utf-8-sig", errors="replace")
    headers = {separator: _csv_header(text, separator) for separator in ",;\t"}
    separator = next((separator for separator, names in headers.items() if "path" in _own_names(names)), ",")
    _check_quotes(text, separator, source)
    own = [name for name, own in zip(headers[separator], _own_names(headers[separator]), strict=True) if _is_own(own)]
    return pyarrow.csv.read_csv(
        io.BytesIO(data),
        # One block, since a cell cannot be longer than a block.
        read_options=pyarrow.csv.ReadOptions(block_size=min(max(len(data), 2**20), 2**31 - 1)),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(own, pa.string())),
    )


def _csv_header(text: str, separator: str) -> list[str]:
    try:
        return next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row), [])
    except csv.Error:  # a very long text without a line break
        return []


def _check_quotes(text: str, separator: str, source: str) -> None:
    """Check that every quote is closed: what follows an open one would become a part of its cell."""
    limit, row = csv.field_size_limit(max(csv.field_size_limit(), len(text))), 0
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            row += 1
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise UserError(f"{source}: expected a closing quote, found none in row {row} or behind it") from error
    finally:
        csv.field_size_limit(limit)


def _own_names(names: Sequence[str]) -> list[str]:
    """The names of columns; those that this package uses are recognised in any case, and with blanks around them."""
    own = [_own_name(name) for name in names]
    # Beside a column `video_id`, one called `id` is the user's own.
    return [name if new == "id" and "video_id" in own else new for name, new in zip(names, own, strict=True)]


def _own_name(name: str) -> str:
    plain = name.strip()
    if plain.lower().startswith(_SPLIT_PREFIX):
        return _SPLIT_PREFIX + plain[len(_SPLIT_PREFIX) :]
    return plain.lower() if _is_own(plain.lower()) else name


def _is_own(name: str) -> bool:
    return name in ("id", *_COLUMNS) or _split_of(name) is not None


def _split_of(column: str) -> str | None:
    """The name of the split that a column holds: `default` for `split`, NAME for `split_NAME`; None for others."""
    return (
        DEFAULT_SPLIT
        if column == "split"
        else column.removeprefix(_SPLIT_PREFIX)
        if column.startswith(_SPLIT_PREFIX)
        else None
    )


def _given_splits(columns: Mapping[str, list[Any]], source: str) -> list[dict[str, str]]:
    """The splits of each row, from `split` and `split_NAME`, or from `splits` in the videos.parquet of a store."""
    given = [{} if value is None else dict(value) for value in columns.get("splits", [None] * len(columns["path"]))]
    for column, values in columns.items():
        name = _split_of(column)
        for splits, value in zip(given, values, strict=True):
            if name is not None and _text(value) is not None:
                splits[name] = value
    for row, splits in enumerate(given):
        for name, value in splits.items():
            subset = subset_of(value)
            if subset is None:
                raise UserError(
                    f"{source}: expected one of {', '.join(SUBSETS)} as split, "
                    f"found {value!r} for {columns['path'][row]!r}"
                )
            splits[name] = subset
    return given


def _text(value: Any) -> str | None:
    """A cell as text; None if it is empty. A class number that pandas stored as a float becomes an integer again."""
    if value is None or value != value:
        return None
    is_integer = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_integer else value).strip() or None


def _texts(value: Any) -> list[str] | None:
    """Several labels, from a list or from text separated by `|` or `;`; None if the cell is empty."""
    is_list = isinstance(value, list)
    parts = value if is_list else re.split(r"[|;]", _text(value) or "")
    labels = [label for part in parts if (label := _text(part)) is not None]
    return labels if is_list or labels else None


def _number(value: Any, name: str, source: str, row: int) -> float | None:
    if _text(value) is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise UserError(f"{source}: expected a finite number as {name}, found {value!r} in row {row}")
    return None if math.isnan(number) else number


def _path_in(source: str, root: str, value: str, row: int) -> str:
    """The location that a row names; a relative one is below `root`, the folder of the manifest.

    Blanks around it belong to it only if a local file has them in its name.
    """
    plain = value.strip()
    if is_uri(plain):
        try:
            return check_from_data(plain)
        except UserError as error:
            raise UserError(f"{source}, row {row}: {error}") from error
    given, stripped = (path if os.path.isabs(path) else join(root, path) for path in (value, plain))
    return given if given != stripped and not is_uri(given) and os.path.lexists(given) else stripped


def _note_on_blanks(values: Sequence[str], paths: Sequence[str]) -> list[str]:
    blank = [
        value for value, path in zip(values, paths, strict=True) if value != value.strip() and path == path.strip()
    ]
    around = "path without the blanks around it" if len(blank) == 1 else "paths without the blanks around them"
    return [f"read {len(blank)} {around}, such as {blank[0]!r}"] if blank else []


def _sizes_of(paths: Sequence[str], given: Sequence[int | None], source: str) -> tuple[list[int | None], list[str]]:
    """The file sizes in bytes, None for a missing or unreachable file; and a note on each server that does not answer.

    Local files are measured. The size that a manifest gives for a remote file is believed, because asking for it takes
    a request; the others are asked for, concurrently.
    """
    asked: dict[str, list[str]] = defaultdict(list)
    for path, size in zip(paths, given, strict=True):
        if is_uri(path) and size is None:
            asked[server_of(path)].append(path)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        answers = dict(zip(asked, pool.map(lambda some: _remote_sizes(some, source), asked.values()), strict=True))
    found = {path: size for sizes, _ in answers.values() for path, size in sizes.items()}
    notes = [
        f"the sizes of {len(asked[server])} files at {showable(server)} are not known: {reason}"
        for server, (_, reason) in answers.items()
        if reason
    ]
    sizes = [
        (found.get(path) if size is None else size) if is_uri(path) else _local_size(path)
        for path, size in zip(paths, given, strict=True)
    ]
    return sizes, notes


def _remote_sizes(paths: Sequence[str], source: str) -> tuple[dict[str, int | None], str]:
    """The sizes of files on one server, and why it gives none of them: it is asked for a few first, and for a time."""
    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        few = [pool.submit(_remote_size, with_options_of(path, source)) for path in paths[:REQUESTS_AT_ONCE]]
        done = wait(few, timeout=_PATIENCE_S).done
        errors = [error for answer in done if (error := answer.exception()) is not None]
        if len(errors) == len(done):
            return {}, first_line(errors[0]) if errors else f"no answer within {_PATIENCE_S:.0f} s"
        answers = [*few, *(pool.submit(_remote_size, with_options_of(path, source)) for path in paths[len(few) :])]
        # One file that is missing or cannot be reached must not stop the corpus from being read.
        sizes = [None if answer.exception() is not None else answer.result() for answer in answers]
        return dict(zip(paths, sizes, strict=True)), ""
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _local_size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None


def _remote_size(path: str) -> int | None:
    filesystem, inner = filesystem_of(path)
    return filesystem.get_file_info(inner).size
