"""The input table: its files, columns and number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from hfray.config.batch import InputSettings
from hfray.data import jsontypes, readers
from hfray.data.listing import list_files
from hfray.data.records import OUTPUT_COLUMNS
from hfray.data.table import FileScan, Slice, Table
from hfray.errors import SettingsError

BLOCK_ROWS = 65536


def scan(settings: InputSettings) -> Table:
    """Scan every file of the input.

    Raises:
        SettingsError: the input has no files or no rows, a file cannot be read, columns differ between files or have
            the names of output columns, or ids are not unique. The message names key, value and remedy.
    """
    files = list_files(settings)
    scanned = [(uri, readers.scan_file(uri, name, settings.format)) for uri, name in files]
    slices = [piece for _, file in scanned for piece in file.slices]
    _check_formats(slices)
    kinds = _merged_kinds([file for _, file in scanned])
    if kinds:
        schema = pa.schema([jsontypes.arrow_field(key, kind) for key, kind in kinds.items()])
    else:
        schema = pa.schema([])
        for uri, file in scanned:
            schema = _unified(schema, file.schema, uri)
    slices = _limited(slices, settings.limit)
    if not slices:
        raise SettingsError(f"input.path={settings.path}: contains no rows. Use a file with rows.")
    table = Table(settings, slices, _chosen(schema, settings), kinds)
    _check_columns(table)
    if settings.id_column is not None:
        _check_ids(table, settings.id_column)
    return table


def _check_formats(slices: list[Slice]) -> None:
    """Refuse JSONL beside other formats: JSONL columns have kinds instead of a schema, and a mixed scan would lose columns."""
    jsonl = next((piece for piece in slices if piece.format == "jsonl"), None)
    other = next((piece for piece in slices if piece.format != "jsonl"), None)
    if jsonl is not None and other is not None:
        raise SettingsError(
            f"input.path={other.uri}: is {other.format}, and {jsonl.uri} is jsonl. "
            "Convert the files to one format, or run them separately."
        )


def _merged_kinds(scanned: list[FileScan]) -> dict[str, jsontypes.Kind]:
    kinds: dict[str, jsontypes.Kind] = {}
    for file in scanned:
        for key, kind in file.kinds.items():
            kinds[key] = jsontypes.merge(kinds.get(key, jsontypes.NULL), kind)
    return kinds


def _unified(schema: pa.Schema, more: pa.Schema, uri: str) -> pa.Schema:
    """The schema that stores the rows of both schemas. Raises SettingsError if there is none."""
    for name in set(schema.names) & set(more.names):
        if _changes_values(schema.field(name).type, more.field(name).type):
            raise _misfit(uri, f"column {name!r} is {more.field(name).type} here, and {schema.field(name).type} there")
    try:
        return pa.unify_schemas([schema, more], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _misfit(uri, str(error)) from error


def _misfit(uri: str, reason: str) -> SettingsError:
    return SettingsError(
        f"input.path={uri}: its columns do not fit the columns of the files before it ({reason}). "
        "Convert the columns to one type, or run the files separately."
    )


def _changes_values(a: pa.DataType, b: pa.DataType) -> bool:
    """Whether Arrow would merge the types and change values: decimals to floats, text to bytes."""
    if pa.types.is_nested(a) and pa.types.is_nested(b) and a.num_fields == b.num_fields:
        return any(_changes_values(a.field(i).type, b.field(i).type) for i in range(a.num_fields))
    for one, other in ((a, b), (b, a)):
        if pa.types.is_decimal(one) and pa.types.is_floating(other):
            return True
        if _is_text(one) and (pa.types.is_binary(other) or pa.types.is_large_binary(other)):
            return True
    return False


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _chosen(schema: pa.Schema, settings: InputSettings) -> pa.Schema:
    if settings.columns is None:
        return schema
    for name in settings.columns:
        if name not in schema.names:
            raise SettingsError(
                f"input.columns: {name!r} is not a column of the input. Columns: {', '.join(schema.names)}."
            )
    return pa.schema([schema.field(name) for name in settings.columns])


def _check_columns(table: Table) -> None:
    for name in table.schema.names:
        if name in OUTPUT_COLUMNS:
            others = [other for other in table.schema.names if other != name]
            raise SettingsError(
                f"input.path={table.settings.path}: the column {name!r} has the name of an output column. "
                f"Rename it, or leave it out with input.columns=[{','.join(others)}]."
            )
    column = table.settings.id_column
    if column is not None and column not in table.schema.names:
        raise SettingsError(
            f"input.id_column={column}: is not a column of the input. Columns: {', '.join(table.schema.names)}."
        )


def _check_ids(table: Table, column: str) -> None:
    """Raise SettingsError if two rows have the same id."""
    seen: set[int] = set()
    for row_id in _ids(table, column):
        key = hash(row_id)  # 64 bits per row; equal hashes are compared exactly
        if key in seen and sum(other == row_id for other in _ids(table, column)) > 1:
            raise SettingsError(
                f"input.id_column={column}: the id {row_id!r} occurs more than once. "
                "Use a column with unique ids, or remove input.id_column to number rows by file and position."
            )
        seen.add(key)


def _ids(table: Table, column: str) -> Iterator[str]:
    """The ids of all rows."""
    lean = table.with_columns([column])
    for piece in lean.slices:
        for block in readers.read(lean, piece, BLOCK_ROWS):
            yield from block["row_id"].to_pylist()


def _limited(slices: list[Slice], limit: int | None) -> list[Slice]:
    if limit is None:
        return slices
    kept: list[Slice] = []
    for piece in slices:
        if limit <= 0:
            break
        kept.append(replace(piece, rows=min(piece.rows, limit)))
        limit -= piece.rows
    return kept
