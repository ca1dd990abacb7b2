"""The row contract: a read block becomes output rows, and a single record is the same row as in a table."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from hfray.completion import Completion
from hfray.data.records import (
    OUTPUT_COLUMNS,
    RecordRow,
    answered,
    output_schema,
    python_rows,
    python_values,
    read_schema,
)

ANSWER = Completion(text="four", finish_reason="stop", num_prompt_tokens=3, num_generated_tokens=1)


def block(**columns: list) -> pa.Table:
    """A read block with these input columns, every row without an error."""
    inputs = pa.table(columns)
    ids = pa.array([f"t:{n}" for n in range(inputs.num_rows)], pa.string())
    arrays = [*inputs.columns, ids, pa.nulls(inputs.num_rows, pa.string())]
    return pa.Table.from_arrays(arrays, schema=read_schema(inputs.schema))


def test_an_output_row_holds_the_input_the_prompt_and_the_answer():
    rows = answered(block(n=[2]), ["two and two?"], [ANSWER])
    assert rows.schema == output_schema(pa.schema([("n", pa.int64())]))
    assert rows.to_pylist() == [
        {
            "n": 2,
            "row_id": "t:0",
            "prompt": "two and two?",
            "generated_text": "four",
            "finish_reason": "stop",
            "num_prompt_tokens": 3,
            "num_generated_tokens": 1,
            "error": None,
        }
    ]


def test_a_failed_row_keeps_its_input_and_says_why():
    (row,) = answered(block(n=[2]), [None], [Completion(error="too long")]).to_pylist()
    assert (row["n"], row["prompt"], row["generated_text"], row["error"]) == (2, None, None, "too long")


@pytest.mark.parametrize(("prompts", "completions"), [([], [ANSWER]), (["a"], []), (["a", "b"], [ANSWER, ANSWER])])
def test_a_missing_or_an_extra_answer_is_an_error(prompts, completions):
    with pytest.raises(RuntimeError, match="1 rows in"):
        answered(block(n=[2]), prompts, completions)


def test_text_that_utf8_cannot_encode_is_written_with_question_marks():
    (row,) = answered(block(n=[2]), ["cut emoji \ud83d"], [ANSWER]).to_pylist()
    assert row["prompt"] == "cut emoji ?"


def test_a_value_that_python_cannot_represent_is_its_text():
    year_12000 = pa.array([316_516_809_600, 0], pa.timestamp("s"))
    assert python_values(year_12000) == ["12000-01-08 00:00:00", datetime.datetime(1970, 1, 1)]
    nested = pa.StructArray.from_arrays([pa.array([[316_516_809_600]], pa.list_(pa.timestamp("s")))], ["times"])
    assert python_rows(pa.table({"a": nested})) == [{"a": {"times": ["12000-01-08 00:00:00"]}}]


def test_a_single_record_is_a_row():
    row = RecordRow(id_column="key").read({"key": 7, "words": ["a", "b"]})
    assert (row.row_id, row.values) == ("7", {"key": 7, "words": ["a", "b"]})
    found = row.answered("a b", ANSWER, None)
    assert list(found) == ["key", "words", *OUTPUT_COLUMNS]
    assert (found["row_id"], found["words"], found["generated_text"], found["error"]) == ("7", ["a", "b"], "four", None)


@pytest.mark.parametrize(("id_column", "record"), [(None, {"n": 1}), ("key", {"n": 1}), ("key", {"key": None})])
def test_a_single_record_without_an_id_has_a_fixed_one(id_column, record):
    assert RecordRow(id_column).read(record).row_id == "record"


def test_a_single_record_that_failed_says_why():
    assert (
        RecordRow(None).read({"n": 1}).answered(None, None, "column 'q' is missing")["error"] == "column 'q' is missing"
    )


def test_a_field_named_like_an_output_column_is_refused():
    with pytest.raises(ValueError, match="the field 'error' has the name of an output column"):
        RecordRow(None).read({"error": "mine"})


def test_a_value_that_no_column_can_store_is_refused():
    with pytest.raises(ValueError, match="the record cannot be a row"):
        RecordRow(None).read({"text": "\ud83d"})
