"""Rows of an input file as blocks: Arrow tables with `row_id` and `error`.

A value that its column cannot store becomes null, and its row gets an error. One bad value never ends the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa

from hfray.data import jsontypes
from hfray.data.jsontypes import JsonValue
from hfray.data.records import python_values, read_schema
from hfray.data.table import Slice, Table

UNFIT = (pa.ArrowException, UnicodeError, OverflowError, RecursionError, TypeError, ValueError)
Values = TypeVar("Values", bound=Sequence[object])


class BlockBuilder:
    """Collects rows of JSON values into blocks of one size."""

    def __init__(self, table: Table, piece: Slice, rows_per_block: int) -> None:
        self._table, self._piece, self._size = table, piece, rows_per_block
        self._rows: list[tuple[int, int, Sequence[JsonValue], str | None]] = []

    def add(self, position: int, line: int, values: Sequence[JsonValue], error: str | None) -> pa.Table | None:
        """Add a row, which starts in line `line` (from 1); returns a block once enough rows are collected."""
        self._rows.append((position, line, values, error))
        return self._block() if len(self._rows) >= self._size else None

    def rest(self) -> Iterator[pa.Table]:
        """The last block, if any rows are left."""
        if self._rows:
            yield self._block()

    def _block(self) -> pa.Table:
        positions, lines, rows, errors = map(list, zip(*self._rows, strict=True))
        arrays = []
        for number, field in enumerate(self._table.schema):
            values = [row[number] for row in rows]
            kind = self._table.kinds.get(field.name, jsontypes.STRING)

            def convert(values: Sequence[JsonValue], kind: jsontypes.Kind = kind) -> pa.Array:
                return jsontypes.to_array(values, kind)

            arrays.append(fitted(values, convert, field, errors))
        self._rows = []
        places = [f"{self._piece.name}, line {line}: " for line in lines]
        errors = [error and place + error for place, error in zip(places, errors, strict=True)]
        return with_ids(self._table, self._piece, arrays, positions, errors)


def fitted(
    values: Values, convert: Callable[[Values], pa.Array], field: pa.Field, errors: list[str | None]
) -> pa.Array:
    """All values converted to an array of the field's type; an unfit value becomes null and an entry in `errors`."""
    try:
        return convert(values)
    except UNFIT:
        pieces = []
        for row in range(len(values)):
            try:
                pieces.append(convert(values[row : row + 1]))  # type: ignore[arg-type]
            except UNFIT as error:
                pieces.append(pa.nulls(1, field.type))
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                errors[row] = (
                    errors[row] or f"the value of column {field.name!r} is not a valid {field.type} ({reason})"
                )
        return pa.concat_arrays(pieces)


def with_ids(
    table: Table, piece: Slice, arrays: Sequence[pa.Array], positions: Sequence[int], errors: list[str | None]
) -> pa.Table:
    """A block of the columns, `row_id` and `error`. The id is the id column's value, or else file name and position."""
    ids = [f"{piece.name}:{position}" for position in positions]
    if table.settings.id_column is not None:
        given = python_values(arrays[table.schema.get_field_index(table.settings.id_column)])
        ids = [own if value is None else str(value) for own, value in zip(ids, given, strict=True)]
    added = [pa.array(ids, pa.string()), pa.array(errors, pa.string())]
    return pa.Table.from_arrays([*arrays, *added], schema=read_schema(table.schema))
