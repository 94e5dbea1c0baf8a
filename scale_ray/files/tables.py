"""The one place where Parquet files are read and written: reading one never runs code from it.

Arrow lets a file declare that a column has an extension type, which a library may have registered in this process.
Ray Data registers one whose values are unpickled as soon as they are read, so a file could run any code. A file with an
extension type is therefore refused before any of its values is read, unless the type is one of Arrow's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow import fs

from scale_ray.errors import UserError, first_line

# Arrow's own types, whose values are plain numbers and text.
_HARMLESS = frozenset(
    ("arrow.bool8", "arrow.fixed_shape_tensor", "arrow.json", "arrow.uuid", "arrow.variable_shape_tensor")
)
# How a field names its extension type if no library has registered that type in this process.
_NAME_KEY = b"ARROW:extension:name"


def open_parquet(file: IO[bytes] | pa.NativeFile, name: str) -> pq.ParquetFile:
    """Open a Parquet file, with its checksums verified on reading; `name` is for messages.

    Raises
    ------
    UserError
        If a column has an extension type that is not one of Arrow's own.
    pyarrow.ArrowException, OSError
        If it is not a readable Parquet file.
    """
    try:
        opened = pq.ParquetFile(file, page_checksum_verification=True)
    except ValueError as error:  # from the type of a library, whose description is damaged
        raise pa.ArrowInvalid(first_line(error)) from error
    _check_types(opened.schema_arrow, name)
    return opened


def read_parquet(file: IO[bytes] | pa.NativeFile, name: str, columns: list[str] | None = None) -> pa.Table:
    """The table in a Parquet file, or some of its columns; see `open_parquet`."""
    return open_parquet(file, name).read(columns)


def read_parquet_files(
    paths: Sequence[str], filesystem: fs.FileSystem, name: str, columns: list[str] | None = None
) -> pa.Table:
    """One table from many Parquet files, which are read concurrently and have the schema of the first one.

    Raises
    ------
    UserError
        If a column has an extension type that is not one of Arrow's own.
    pyarrow.ArrowException, OSError
        If one of them is not a readable Parquet file.
    """
    dataset = pyarrow.dataset.dataset(list(paths), filesystem=filesystem, format="parquet")
    _check_types(dataset.schema, name)
    return dataset.to_table(columns=columns)


def write_parquet(table: pa.Table, file: IO[bytes]) -> None:
    """Write a compressed Parquet file whose pages carry checksums.

    Without dictionaries: features hardly repeat, so their dictionaries make files larger and slow to read; in other
    columns, the compression finds what repeats. DuckDB does not read float16 in the encoding BYTE_STREAM_SPLIT.
    """
    pq.write_table(table, file, compression="zstd", use_dictionary=False, write_page_checksum=True)


def _check_types(schema: pa.Schema, name: str) -> None:
    for field in schema:
        for extension in _extensions_in(field):
            if extension not in _HARMLESS:
                raise UserError(
                    f"{name}: expected columns of plain types, found the extension type {extension!r} in column "
                    f"{field.name!r}, which could run code"
                )


def _extensions_in(field: pa.Field) -> Iterator[str]:
    """The names of the extension types of a field and of everything nested in it, registered or not."""
    if _NAME_KEY in (field.metadata or {}):
        yield field.metadata[_NAME_KEY].decode(errors="replace")
    yield from _extensions_in_type(field.type)


def _extensions_in_type(type_: Any) -> Iterator[str]:
    if isinstance(type_, pa.BaseExtensionType):
        yield type_.extension_name
        yield from _extensions_in_type(type_.storage_type)
    elif pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        yield from _extensions_in_type(type_.value_type)
    elif pa.types.is_map(type_):
        yield from _extensions_in(type_.key_field)
        yield from _extensions_in(type_.item_field)
    elif pa.types.is_struct(type_) or pa.types.is_union(type_):
        for number in range(type_.num_fields):
            yield from _extensions_in(type_.field(number))
    elif pa.types.is_nested(type_):  # lists of every kind
        yield from _extensions_in(type_.value_field)
