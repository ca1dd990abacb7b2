"""The columns of typed answers in the row contract."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.completion import Completion
from hfray.config.response import ResponseSettings
from hfray.data.partreport import PartReport
from hfray.data.records import OUTPUT_COLUMNS, RecordRow, answered, output_schema
from hfray.data.responses import SCHEMA_KEY, ResponseColumns
from hfray.errors import SettingsError
from tests.conftest import batch_settings
from tests.data.test_records import block
from tests.schemas import REVIEW

GOOD = {"sentiment": "neutral", "stars": 3, "topics": ["a"]}


def completion(value: object, attempts: int = 1) -> Completion:
    return Completion(json.dumps(value), "stop", 3, 9, response=value, num_attempts=attempts)


FAILED = Completion('{"senti', "error", 3, 9, error="the answer does not fit its schema", num_attempts=2)
REFUSED = Completion(error="too long")


def test_without_a_form_there_are_no_columns():
    assert ResponseColumns.of(batch_settings("conf=fake", "input.path=-", "output.path=-")) is None


def test_the_column_is_typed_and_a_failed_row_keeps_its_text(tmp_path):
    columns = ResponseColumns(ResponseSettings(schema=REVIEW))
    table = answered(block(n=[1, 2, 3]), ["p"] * 3, [completion(GOOD), FAILED, REFUSED], columns)
    assert table.schema == output_schema(pa.schema([("n", pa.int64())]), columns)
    pq.write_table(table, tmp_path / "x.parquet")
    read = pq.read_table(tmp_path / "x.parquet")
    assert json.loads(read.schema.metadata[SCHEMA_KEY]) == REVIEW
    assert read["response"].to_pylist() == [GOOD, None, None]
    assert read["num_attempts"].to_pylist() == [1, 2, None]
    assert read["generated_text"].to_pylist()[1] == '{"senti'
    assert read.column_names[-3:] == ["response", "num_attempts", "error"]


def test_the_type_does_not_depend_on_the_rows():
    columns = ResponseColumns(ResponseSettings(schema=REVIEW))
    full, empty = (answered(block(n=[1]), ["p"], [c], columns).schema for c in (completion(GOOD), FAILED))
    assert full == empty


def test_flatten_gives_each_property_a_column():
    columns = ResponseColumns(ResponseSettings(schema=REVIEW, flatten=True))
    (row,) = answered(block(n=[1]), ["p"], [completion(GOOD)], columns).to_pylist()
    assert {name: row[name] for name in GOOD} == GOOD
    assert "response" not in row


@pytest.mark.parametrize("settings", [{"regex": "a+"}, {"choice": ["a"]}, {"choice": "labels"}])
def test_other_forms_are_text(settings):
    columns = ResponseColumns(ResponseSettings(**settings))
    table = answered(block(n=[1]), ["p"], [completion("a")], columns)
    assert (table["response"].type, table["response"].to_pylist()) == (pa.string(), ["a"])


def test_a_value_beyond_its_column_fails_its_row_alone():
    columns = ResponseColumns(ResponseSettings(schema={"type": "integer"}))
    table = answered(block(n=[1, 2]), ["p"] * 2, [completion(1 << 70), completion(5)], columns)
    assert table["response"].to_pylist() == [None, 5]
    assert "column 'response' of type int64" in table["error"].to_pylist()[0]
    assert table["finish_reason"].to_pylist() == ["error", "stop"]
    assert table["generated_text"].to_pylist()[0] == str(1 << 70)


def test_a_column_of_the_same_name_is_refused():
    flat = ResponseColumns(ResponseSettings(schema=REVIEW, flatten=True))
    with pytest.raises(SettingsError, match=r"'stars'.*a column of the input.*drop response.flatten"):
        flat.check_names(["stars"], OUTPUT_COLUMNS)
    whole = ResponseColumns(ResponseSettings(schema=REVIEW))
    with pytest.raises(SettingsError, match=r"'response'.*leave it out with input.columns"):
        whole.check_names(["response"], OUTPUT_COLUMNS)
    taken = ResponseSettings(schema={"type": "object", "properties": {"prompt": {}}}, flatten=True)
    with pytest.raises(SettingsError, match=r"'prompt'.*an output column"):
        ResponseColumns(taken).check_names([], OUTPUT_COLUMNS)


def test_a_file_counts_its_answers():
    columns = ResponseColumns(ResponseSettings(schema=REVIEW))
    rows = [completion(GOOD), completion(GOOD, 2), FAILED, REFUSED]
    table = answered(block(n=[1, 2, 3, 4]), ["p"] * 4, rows, columns)
    report = PartReport.of(table)
    assert report.responses == {"valid": 2, "invalid": 1, "retried": 2}
    report.add(PartReport.of(table))
    assert report.to_json()["responses"] == {"valid": 4, "invalid": 2, "retried": 4}
    plain = answered(block(n=[1]), ["p"], [Completion("a", "stop", 1, 1)])
    assert PartReport.of(plain).responses == {}
    assert "responses" not in PartReport.of(plain).to_json()


def test_thoughts_have_a_column_with_and_without_a_form():
    for settings, names in ((ResponseSettings(), ["reasoning"]), (ResponseSettings(json=True), None)):
        columns = ResponseColumns(settings, splits_reasoning=True)
        thought = Completion("{}", "stop", 3, 9, reasoning="so \ud83d", response={}, num_attempts=1)
        table = answered(block(n=[1]), ["p"], [thought], columns)
        assert table["reasoning"].to_pylist() == ["so ?"]
        assert [field.name for field in columns.fields] == (names or ["reasoning", "response", "num_attempts"])


def test_a_single_record_has_the_same_columns():
    columns = ResponseColumns(ResponseSettings(schema=REVIEW))
    row = RecordRow(None).read({"n": 1}).answered("p", completion(GOOD), None, columns)
    assert (row["response"], row["num_attempts"]) == (GOOD, 1)
