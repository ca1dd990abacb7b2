"""The row contract: the columns of an output row, and how rows become output rows. One row in, one row out.

A job whose answers have a form adds the columns of its ResponseColumns before `error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from hfray.completion import Completion
from hfray.data import jsontypes
from hfray.data.jsontypes import JsonValue
from hfray.data.responses import ResponseColumns

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
# The columns that a reader adds to the input's: the row's id, and why the row could not be read.
READ_FIELDS = [pa.field("row_id", pa.string()), pa.field("error", pa.string())]
ALONE_ID = "record"  # the row_id of a single record without id column, which has no position


def output_schema(input_schema: pa.Schema, responses: ResponseColumns | None = None) -> pa.Schema:
    """The schema of every output file: the input's columns, then OUTPUT_FIELDS with the answers' columns."""
    if responses is None:
        return pa.schema([*input_schema, *OUTPUT_FIELDS])
    *before, error = OUTPUT_FIELDS
    return pa.schema([*input_schema, *before, *responses.fields, error], metadata=responses.metadata or None)


def read_schema(input_schema: pa.Schema) -> pa.Schema:
    """The schema of a block on its way to a worker."""
    return pa.schema([*input_schema, *READ_FIELDS])


def python_values(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """The column's values as Python objects.

    A value that Python cannot represent becomes its text: a timestamp after the year 9999, an unknown time zone.
    """
    try:
        return column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, KeyError):
        return [_python_value(scalar) for scalar in column]


def _python_value(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except (pa.ArrowException, ValueError, OverflowError, KeyError):
        if isinstance(scalar, pa.StructScalar):
            return {name: _python_value(value) for name, value in scalar.items()}
        if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
            return [_python_value(value) for value in scalar.values]
        if isinstance(scalar, pa.TimestampScalar):
            return scalar.cast(pa.timestamp(scalar.type.unit)).cast(pa.string()).as_py()
        return scalar.cast(pa.string()).as_py()


def python_rows(block: pa.Table) -> list[dict[str, object]]:
    """The block's rows as dicts; see `python_values`."""
    columns = [python_values(column) for column in block.columns]
    return [
        {name: values[row] for name, values in zip(block.column_names, columns, strict=True)}
        for row in range(block.num_rows)
    ]


def answered(
    block: pa.Table,
    prompts: Sequence[str | None],
    completions: Sequence[Completion],
    responses: ResponseColumns | None = None,
) -> pa.Table:
    """The output rows of a read block: the block's columns, then each row's prompt and completion, in order.

    Args:
        responses: the columns of the answers, if they have a form. A row whose answer its column cannot store fails.

    Raises:
        RuntimeError: the numbers of rows, prompts and completions differ.
    """
    if not len(prompts) == len(completions) == block.num_rows:
        raise RuntimeError(f"{block.num_rows} rows in, {len(prompts)} prompts and {len(completions)} completions out")
    inputs = block.drop_columns([field.name for field in READ_FIELDS])
    typed: list[pa.Array] = []
    if responses is not None:
        typed, unfit = responses.arrays(completions)
        completions = [_failed(c, error) if error else c for c, error in zip(completions, unfit, strict=True)]
    arrays = [
        block["row_id"],
        _texts(prompts),
        _texts([c.text for c in completions]),
        _texts([c.finish_reason for c in completions]),
        pa.array([c.num_prompt_tokens for c in completions], pa.int32()),
        pa.array([c.num_generated_tokens for c in completions], pa.int32()),
        *typed,
        _texts([c.error for c in completions]),
    ]
    return pa.Table.from_arrays([*inputs.columns, *arrays], schema=output_schema(inputs.schema, responses))


def _failed(completion: Completion, error: str) -> Completion:
    """The completion as an error that keeps its text."""
    return replace(completion, error=error, finish_reason="error")


def _texts(values: Sequence[str | None]) -> pa.Array:
    """A column of texts. Lone surrogates, which UTF-8 cannot encode, become question marks."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        safe = [None if value is None else value.encode("utf-8", "replace").decode() for value in values]
        return pa.array(safe, pa.string())


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A single record, as a block of one row and as values."""

    block: pa.Table
    values: dict[str, object]

    @property
    def row_id(self) -> str:
        """The row's id, which seeds its random numbers."""
        return self.block["row_id"][0].as_py()

    def answered(
        self,
        prompt: str | None,
        completion: Completion | None,
        error: str | None,
        responses: ResponseColumns | None = None,
    ) -> dict[str, object]:
        """The output row as a dict. `error` says why there is no completion."""
        table = answered(self.block, [prompt], [completion or Completion(error=error)], responses)
        return python_rows(table)[0]


class RecordRow:
    """Reads single records.

    Args:
        id_column: the field with the row's id, or None.
    """

    def __init__(self, id_column: str | None) -> None:
        self._id_column = id_column

    def read(self, record: Mapping[str, JsonValue]) -> ReadRow:
        """A record as a block of one row.

        Raises:
            ValueError: a field has the name of an output column, or a value that no column can store.
        """
        taken = [name for name in record if name in OUTPUT_COLUMNS]
        if taken:
            raise ValueError(f"the field {taken[0]!r} has the name of an output column. Rename it.")
        try:
            columns = jsontypes.Columns()
            columns.add(record)
            schema = pa.schema([jsontypes.arrow_field(name, kind) for name, kind in columns.kinds.items()])
            arrays = [jsontypes.to_array([record[name]], kind) for name, kind in columns.kinds.items()]
            given = record.get(self._id_column) if self._id_column else None
            added = [pa.array([ALONE_ID if given is None else str(given)], pa.string()), pa.nulls(1, pa.string())]
            block = pa.Table.from_arrays([*arrays, *added], schema=read_schema(schema))
            values = python_rows(block.drop_columns([field.name for field in READ_FIELDS]))
        except (pa.ArrowException, UnicodeError, RecursionError) as error:
            raise ValueError(f"the record cannot be a row ({type(error).__name__}: {error})") from error
        return ReadRow(block, values[0] if values else {})
