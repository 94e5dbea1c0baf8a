"""Reads manifests: CSV or Parquet files that list videos with their labels, groups and splits."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from pyarrow import fs

from scale_ray.corpus.cells import first_row, is_text, numbers, text_lists, texts
from scale_ray.corpus.columns import VIDEO_COLUMNS, Listing, videos_table
from scale_ray.corpus.segments import segments, shared_files, with_segments
from scale_ray.corpus.sizes import file_sizes
from scale_ray.corpus.splits import DEFAULT_SPLIT, SUBSETS, Splits, subset_of
from scale_ray.errors import UserError, first_line
from scale_ray.files.locations import (
    check_from_data,
    filesystem_of,
    first_answer,
    info_of,
    is_uri,
    join,
    parent,
    read_bytes,
    without_options,
)
from scale_ray.files.tables import read_parquet

MANIFEST_SUFFIXES = (".csv", ".parquet")

_SPLIT_PREFIX = "split_"
_LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)
_BYTES = (
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    pa.types.is_binary_view,
)
_ROWS_AT_ONCE = 4096
_COLUMNS = tuple(VIDEO_COLUMNS.names)
_OTHER_NAMES = {"start": "start_s", "end": "end_s"}
_STARTS_AS_URI = r"^[A-Za-z][A-Za-z0-9+.-]*://"
# URIs that `check_from_data` accepts, whatever follows in them; it looks at all others one by one.
_ACCEPTED_URI = r"^(s3|gs|gcs|hf|http|https)://[A-Za-z0-9._-]+/[^?\x00-\x1f\x7f]*$"


def read_manifest(source: str) -> Listing:
    """Read the videos of a manifest; its additional columns follow the others.

    Raises
    ------
    UserError
        If the manifest cannot be read, has no column `path` or no row, or holds an invalid value.
    """
    manifest, notes = _read_table(source)
    id_column = next((name for name in ("video_id", "id") if name in manifest.column_names), "path")
    ids = texts(manifest[id_column])
    for name, column in {"path": texts(manifest["path"]), id_column: ids}.items():
        if row := first_row(column.is_null()):
            raise UserError(f"{source}: expected a value for {name!r} in every row, found none in row {row}")
    paths, notes_on_paths = _paths(manifest["path"], source)
    starts, ends = _optional(manifest, "start_s", source), _optional(manifest, "end_s", source)
    start_s, end_s = segments(starts, ends, len(manifest), source)
    if id_column == "path":
        ids = with_segments(ids, start_s, end_s)
    shared, has_segments = shared_files(paths, texts(manifest["path"]), start_s)
    groups = texts(manifest["group"]) if "group" in manifest.column_names else None
    if has_segments:
        groups = shared if groups is None else pc.coalesce(groups, shared)
    splits = _given_splits(manifest, source)
    sizes, notes_on_sizes, unreachable = file_sizes(paths, _optional(manifest, "size_bytes", source), source)
    videos = videos_table(
        len(manifest),
        video_id=ids,
        path=paths,
        size_bytes=sizes,
        start_s=start_s,
        end_s=end_s,
        label=texts(manifest["label"]) if "label" in manifest.column_names else None,
        labels=text_lists(manifest["labels"]) if "labels" in manifest.column_names else None,
        target=_optional(manifest, "target", source),
        group=groups,
    )
    for name in manifest.column_names:
        if name not in (id_column, *_COLUMNS) and _split_of(name) is None:
            videos = videos.append_column(name, manifest[name])
    return Listing(videos, splits, "splits as given", notes + notes_on_paths + notes_on_sizes, unreachable, shared)


def _optional(manifest: pa.Table, name: str, source: str) -> pa.ChunkedArray | None:
    """The numbers in a column, if there is one of this name."""
    return numbers(manifest[name], name, source) if name in manifest.column_names else None


def _read_table(source: str) -> tuple[pa.Table, list[str]]:
    """The table of a manifest, in which the columns that this package uses have their names, and notes for the user."""
    if first_answer(_kind_of, source) != fs.FileType.File:
        raise UserError(f"expected a manifest of videos, found no file at {source}")
    is_parquet = without_options(source).lower().endswith(".parquet")
    try:
        data = read_bytes(source)
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


def _kind_of(location: str) -> fs.FileType:
    filesystem, path = filesystem_of(location)
    return info_of(filesystem, path).type


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


def _check_quotes(content: str, separator: str, source: str) -> None:
    """Check that every quote is closed: what follows an open one would become a part of its cell."""
    limit, row = csv.field_size_limit(max(csv.field_size_limit(), len(content))), 0
    try:
        for _ in csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True):
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
    own = _OTHER_NAMES.get(plain.lower(), plain.lower())
    return own if _is_own(own) else name


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


def _given_splits(manifest: pa.Table, source: str) -> Splits:
    """The splits of the rows, from `split` and `split_NAME`, or from `splits` in the videos.parquet of a store."""
    given = _unnested(manifest["splits"]) if "splits" in manifest.column_names else {}
    for column in manifest.column_names:
        if (name := _split_of(column)) is not None:
            values = texts(manifest[column])
            given[name] = pc.coalesce(values, given[name]) if name in given else values
    subsets = np.full((len(manifest), len(given)), -1, np.int8)
    for number, values in enumerate(given.values()):
        encoded = values.combine_chunks().dictionary_encode()
        indices = encoded.indices.fill_null(-1).to_numpy()
        for index, value in enumerate(encoded.dictionary.to_pylist()):
            rows = indices == index
            if (subset := subset_of(value)) is None:
                row = first_row(rows)
                assert row is not None
                raise UserError(
                    f"{source}: expected one of {', '.join(SUBSETS)} as split, "
                    f"found {value!r} for {str(manifest['path'][row - 1])!r}"
                )
            subsets[rows, number] = SUBSETS.index(subset)
    used = np.flatnonzero((subsets >= 0).any(axis=0))
    return Splits(tuple(np.array(list(given), object)[used]), subsets[:, used])


def _unnested(maps: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """The subset of every video by the name of a split, from one map per video."""
    given: dict[str, np.ndarray] = {}
    for start in range(0, len(maps), _ROWS_AT_ONCE):
        for row, pairs in enumerate(maps.slice(start, _ROWS_AT_ONCE).to_pylist(), start):
            for name, subset in pairs or ():
                given.setdefault(name, np.full(len(maps), None, object))[row] = subset
    return {name: texts(pa.chunked_array([pa.array(values, pa.string())])) for name, values in given.items()}


def _paths(column: pa.ChunkedArray, source: str) -> tuple[pa.ChunkedArray, list[str]]:
    """The locations that the rows name, and notes for the user; a relative path is below the folder of the manifest."""
    root = parent(source)
    assert root is not None, source
    given = column.cast(pa.string()) if is_text(column.type) else _as_texts(column)
    plain = pc.utf8_trim_whitespace(given)
    is_whole = pc.match_substring_regex(plain, _STARTS_AS_URI)
    is_special = pc.or_(
        pc.not_equal(plain, given), pc.and_not(is_whole, pc.match_substring_regex(plain, _ACCEPTED_URI))
    )
    is_whole = pc.or_(is_whole, pc.starts_with(plain, "/"))
    if is_uri(root):  # a name is encoded before it becomes a part of a URI
        is_special, is_whole = pc.or_(is_special, pc.invert(is_whole)), pc.is_valid(plain)
    paths = pc.if_else(is_whole, plain, pc.binary_join_element_wise(root.rstrip("/"), plain, "/"))
    rows = np.flatnonzero(np.asarray(is_special))
    if not len(rows):
        return paths, []
    values = given.take(pa.array(rows)).to_pylist()
    found = [_path_in(source, root, value, row) for row, value in zip((rows + 1).tolist(), values, strict=True)]
    # Replaced as text of any length.
    paths = pc.replace_with_mask(
        paths.combine_chunks().cast(pa.large_string()), is_special.combine_chunks(), pa.array(found, pa.large_string())
    )
    return pa.chunked_array([paths.cast(pa.string())]), _note_on_blanks(values, found)


def _as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([str(value) for value in column.to_pylist()], pa.string())])


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
