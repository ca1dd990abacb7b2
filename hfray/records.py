"""The row contract: what columns an output row has, and how rows become them. One row in, one row out."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from hfray.completion import Completion

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
