"""Distributions of typed answers in the report."""

from __future__ import annotations

import pyarrow as pa
import pytest

from hfray.completion import Completion
from hfray.config.response import ResponseSettings
from hfray.data.output import OutputFolder
from hfray.data.records import answered
from hfray.data.responses import ResponseColumns
from hfray.runs import answers as module
from hfray.runs.answers import read_answers
from hfray.runs.report import report_page
from tests.data.test_records import block
from tests.folders import row, write_part
from tests.schemas import REVIEW

MOODS = ["positive", "negative", "positive"]


def write_answers(folder, settings: ResponseSettings, values: list) -> None:
    completions = [
        Completion("{}", "stop", 3, 9, response=value, num_attempts=1 + (i == 0)) for i, value in enumerate(values)
    ]
    completions.append(Completion("x", "error", 3, 9, error="it does not fit", num_attempts=2))
    table = answered(
        block(n=list(range(len(completions)))), ["p"] * len(completions), completions, ResponseColumns(settings)
    )
    write_part(folder, "aaaa", 0, table.to_pylist(), table.schema)


def test_each_column_has_its_distribution(tmp_path):
    values = [{"sentiment": mood, "stars": i + 1, "topics": ["a", "b"][:i]} for i, mood in enumerate(MOODS)]
    write_answers(tmp_path, ResponseSettings(schema=REVIEW), values)
    found = read_answers(OutputFolder(str(tmp_path)))
    assert found.counts == {"valid": 3, "invalid": 1, "retried": 2}
    words = {column.name: (column.count, column.missing, column.words) for column in found.columns}
    assert words == {
        "response.sentiment": (3, 0, "positive: 2, negative: 1"),
        "response.stars": (3, 0, "1 to 3, on average 2"),
        "response.topics[]": (3, 0, "a: 2, b: 1"),
    }
    page = report_page(OutputFolder(str(tmp_path)))
    assert "3 fit their form, 1 never did; 2 needed more than one try" in page
    assert "positive: 2, negative: 1" in page
    assert "the answer that does not fit</span><pre>x</pre>" in page


def test_flattened_columns_have_theirs(tmp_path):
    write_answers(tmp_path, ResponseSettings(schema=REVIEW, flatten=True), [{"sentiment": "neutral", "stars": 2}])
    columns = {column.name: column for column in read_answers(OutputFolder(str(tmp_path))).columns}
    assert (columns["stars"].words, columns["stars"].missing) == ("2 to 2, on average 2", 1)


def test_free_texts_are_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_VALUES", 20)
    write_answers(tmp_path, ResponseSettings(regex=".*"), [f"text {i}" for i in range(40)])
    (column,) = read_answers(OutputFolder(str(tmp_path))).columns
    assert (column.words, len(column.texts)) == ("many different texts", 0)


def test_plain_answers_have_none(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(1)])
    found = read_answers(OutputFolder(str(tmp_path)))
    assert (found.counts, found.columns) == ({}, [])
    assert "Typed answers" not in report_page(OutputFolder(str(tmp_path)))


@pytest.mark.parametrize("kind", [pa.bool_(), pa.date32(), pa.timestamp("us", "UTC"), pa.float64(), pa.uint64()])
def test_every_simple_type_has_words(kind):
    column = module.Distribution("x")
    column.add(pa.nulls(2, kind))
    assert column.words == "no values"
    column.add(pa.array([1], pa.int32() if pa.types.is_date32(kind) else pa.int64()).cast(kind))
    assert column.words
