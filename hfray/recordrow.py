"""One record as the batch job would treat it: read as a JSONL line is, answered as an output row is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hfray import jsontypes
from hfray.completion import Completion
from hfray.records import OUTPUT_COLUMNS, READ_FIELDS, answered, read_schema

NAME = "record"  # the row_id where there is no id column: a record alone has no position


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A record read."""

    block: pa.Table
    values: dict[str, Any]

    @property
    def row_id(self) -> str:
        """The row's id, which its random numbers come from."""
        return self.block["row_id"][0].as_py()

    def answered(self, prompt: str | None, completion: Completion | None, error: str | None) -> dict[str, Any]:
        """The output row, column by column; `error` is why there is no completion."""
        table = answered(self.block, [prompt], [completion or Completion(error=error)])
        return table.to_pylist()[0]


class RecordRow:
    """Reads records.

    Args:
        id_column: whose value becomes the row_id.
    """

    def __init__(self, id_column: str | None) -> None:
        self._id_column = id_column

    def read(self, record: dict[str, Any]) -> ReadRow:
        """A record as a block of one row.

        Raises:
            ValueError: a field has an output column's name, or a value that no column can hold.
        """
        taken = [name for name in record if name in OUTPUT_COLUMNS]
        if taken:
            raise ValueError(f"the field {taken[0]!r} has the name of an output column. Rename it.")
        columns = jsontypes.Columns()
        columns.add(record)
        kinds = columns.result()
        try:
            schema = pa.schema([pa.field(name, jsontypes.arrow_type(kind)) for name, kind in kinds.items()])
            arrays = [jsontypes.to_array([record[name]], kind) for name, kind in kinds.items()]
            given = record.get(self._id_column) if self._id_column else None
            added = [pa.array([NAME if given is None else str(given)], pa.string()), pa.array([None], pa.string())]
            block = pa.Table.from_arrays([*arrays, *added], schema=read_schema(schema))
            values = block.drop_columns([field.name for field in READ_FIELDS]).to_pylist()
        except (pa.ArrowException, UnicodeError, RecursionError) as error:
            raise ValueError(f"the record cannot be a row ({type(error).__name__}: {error})") from error
        return ReadRow(block, values[0] if values else {})
