"""Parquet files: a slice is a run of row groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from hfray.data import files
from hfray.data.blocks import fitted, with_ids
from hfray.data.jsontypes import JSON_TEXT
from hfray.data.paths import open_filesystem
from hfray.data.table import FileScan, Slice, Table
from hfray.errors import SettingsError


def scan(whole: Slice) -> FileScan:
    """Slices of about SLICE_BYTES, and the schema, from the file's footer."""
    filesystem, path = open_filesystem(whole.uri, "input.path")
    slices: list[Slice] = []
    with filesystem.open_input_file(path) as file:
        parquet = pq.ParquetFile(file)
        position, size, pending = 0, 0, list[int]()
        for group in range(parquet.num_row_groups):
            pending.append(group)
            size += parquet.metadata.row_group(group).total_byte_size
            if size >= files.SLICE_BYTES or group == parquet.num_row_groups - 1:
                rows = sum(parquet.metadata.row_group(g).num_rows for g in pending)
                mean = size // max(1, rows)
                slices.append(
                    replace(whole, rows=rows, first_position=position, row_groups=tuple(pending), row_bytes=mean)
                )
                position, size, pending = position + rows, 0, []
        fields = [_field(field) for field in parquet.schema_arrow]
    _check_names([field.name for field in fields], whole.uri)
    return FileScan([piece for piece in slices if piece.rows], pa.schema(fields))


def _check_names(names: list[str], uri: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"input.path={uri}: the file contains the column {twice!r} twice. Rename one of them.")


def _field(field: pa.Field) -> pa.Field:
    """The field as this job reads it. A column that an earlier job wrote as JSON text keeps that metadata."""
    is_json = JSON_TEXT.items() <= (field.metadata or {}).items()
    return pa.field(field.name, _plain(field.type), metadata=JSON_TEXT if is_json else None)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without Arrow's view layouts, which few functions support; the values are the same."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    return kind


def read(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    """The slice's rows. A value that does not fit the table's common type is an error of its row."""
    filesystem, path = open_filesystem(piece.uri, "input.path")
    position, left = piece.first_position, piece.rows
    with filesystem.open_input_file(path) as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        here = [name for name in table.schema.names if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(rows_per_block, row_groups=list(piece.row_groups), columns=here):
            count = min(left, batch.num_rows)
            errors: list[str | None] = [None] * count
            arrays = []
            for field in table.schema:
                if field.name in here:
                    arrays.append(fitted(batch[field.name][:count], _caster(field.type), field, errors))
                else:
                    arrays.append(pa.nulls(count, field.type))
            errors = [e and f"{piece.name}, row {position + row + 1}: {e}" for row, e in enumerate(errors)]
            yield with_ids(table, piece, arrays, range(position, position + count), errors)
            position, left = position + count, left - count
            if left <= 0:
                return


class _caster:
    """Casts arrays to a type, and checks them: Parquet may contain text that is not UTF-8."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind

    def __call__(self, array: pa.Array) -> pa.Array:
        array = array if array.type == self._kind else array.cast(self._kind)
        array.validate(full=True)
        return array
