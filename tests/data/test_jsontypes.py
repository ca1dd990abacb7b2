"""Arrow types for JSON values: each value comes back unchanged or as its JSON text."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.data import jsontypes
from hfray.data.jsontypes import BOOL, FLOAT, INT, JSON, LARGE_INT, NULL, STRING, ListOf, Struct


def kind_of_all(values):
    columns = jsontypes.Columns()
    for value in values:
        columns.add({"x": value})
    return columns.kinds["x"]


def through_parquet(values):
    kind = kind_of_all(values)
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": jsontypes.to_array(values, kind)}), sink)
    sink.seek(0)
    return pq.read_table(sink)["x"].to_pylist()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None], NULL),
        ([True, None], BOOL),
        ([1, 2], INT),
        ([1, 0.5], FLOAT),
        ([1, 2**53 + 1], LARGE_INT),
        ([2**53 + 1, 0.5], JSON),
        ([0.5, 1, 2**53 + 1], JSON),
        ([1, 2**63], JSON),
        (["a", 1], JSON),
        ([True, 1], JSON),
        (["a"], STRING),
        ([[], [1]], ListOf(INT)),
        ([[2**53 + 1], [0.5]], JSON),
        ([[2**53 + 1], [1]], ListOf(LARGE_INT)),
        ([{"a": 1, "b": None}, {"a": 0.5, "b": "x"}], Struct((("a", FLOAT), ("b", STRING)))),
        ([{"a": 2**60}, {"a": 0.5}], JSON),
        ([{"a": 1}, {"b": 1}], JSON),
        ([{}], JSON),
    ],
)
def test_the_kind_of_a_column(values, kind):
    assert kind_of_all(values) == kind
    back = through_parquet(values)
    if kind == JSON:
        back = [v if isinstance(was, str) or v is None else json.loads(v) for v, was in zip(back, values, strict=True)]
    assert back == values


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}])
@pytest.mark.parametrize("depth", [1, jsontypes.MAX_NESTING, jsontypes.MAX_NESTING + 1, 62, 400])
def test_deeply_nested_values_can_be_read_back(wrap, depth):
    """Arrow writes Parquet that it cannot read when lists are nested about 50 levels deep."""
    value = 1
    for _ in range(depth):
        value = wrap(value)
    back = through_parquet([value])[0]
    assert (json.loads(back) if depth > jsontypes.MAX_NESTING else back) == value


@pytest.mark.parametrize("values", [[1, 2**64], [1, "a"], [{"a": 1}, {"b": 1}]])
def test_the_field_of_a_column_of_json_text_says_so(values):
    assert jsontypes.arrow_field("x", kind_of_all(values)).metadata == jsontypes.JSON_TEXT


def test_the_field_of_another_column_has_no_metadata():
    assert jsontypes.arrow_field("x", ListOf(INT)) == pa.field("x", pa.list_(pa.int64()))
    assert jsontypes.arrow_field("x", STRING).metadata is None


def test_rows_of_one_shape_are_examined_once():
    columns = jsontypes.Columns()
    for i in range(5):
        columns.add({"a": "x", "b": None, "n": 2**53 * (i == 4) + i})
    assert columns.kinds == {"a": STRING, "b": NULL, "n": LARGE_INT}


def test_a_value_of_another_kind_is_refused():
    with pytest.raises((pa.ArrowException, OverflowError)):
        jsontypes.to_array(["a"], INT)
    with pytest.raises(UnicodeError):
        jsontypes.to_array(["\ud83d"], STRING)
