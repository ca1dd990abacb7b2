"""The row contract: what columns an output row has, and how rows become them. One row in, one row out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hfray.completion import Completion
from hfray.data import jsontypes

OUTPUT_FIELDS = [
    pa.field("row_id", pa.string()),
    pa.field("prompt", pa.string()),
    pa.field("generated_text", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("num_prompt_tokens", pa.int32()),
    pa.field("num_generated_tokens", pa.int32()),
    pa.field("error", pa.string()),
]
OUTPUT_COLUMNS = [field.name for field in OUTPUT_FIELDS]
# Columns that the reader adds to the input's: the row's id, and what was wrong with a line that could not be read.
READ_FIELDS = [pa.field("row_id", pa.string()), pa.field("error", pa.string())]


def output_schema(input_schema: pa.Schema) -> pa.Schema:
    """The one schema of every output file: the input's columns, then ours."""
    return pa.schema([*input_schema, *OUTPUT_FIELDS])


def read_schema(input_schema: pa.Schema) -> pa.Schema:
    """The schema of a block on its way to a worker."""
    return pa.schema([*input_schema, *READ_FIELDS])


def answered(block: pa.Table, prompts: Sequence[str | None], completions: Sequence[Completion]) -> pa.Table:
    """The output rows of a read block: its columns, then prompt and completion of each row, in order.

    Raises:
        RuntimeError: there is not exactly one completion for each row.
    """
    if not len(prompts) == len(completions) == block.num_rows:
        raise RuntimeError(f"{block.num_rows} rows in, {len(prompts)} prompts and {len(completions)} completions out")
    inputs = block.drop_columns([field.name for field in READ_FIELDS])
    columns = {
        "row_id": block["row_id"],
        "prompt": prompts,
        "generated_text": [c.text for c in completions],
        "finish_reason": [c.finish_reason for c in completions],
        "num_prompt_tokens": [c.num_prompt_tokens for c in completions],
        "num_generated_tokens": [c.num_generated_tokens for c in completions],
        "error": [c.error for c in completions],
    }
    arrays = [columns[f.name] if f.name == "row_id" else _array(columns[f.name], f.type) for f in OUTPUT_FIELDS]
    return pa.Table.from_arrays([*inputs.columns, *arrays], schema=output_schema(inputs.schema))


def _array(values: Sequence[str | int | None], kind: pa.DataType) -> pa.Array:
    """Values as a column; lone surrogates, which UTF-8 has no place for, become question marks."""
    try:
        return pa.array(values, type=kind)
    except UnicodeEncodeError:
        safe = [None if value is None else value.encode("utf-8", "replace").decode() for value in values]
        return pa.array(safe, type=kind)


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
