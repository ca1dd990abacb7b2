"""Arrow types of JSON Schemas, and the values in them."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from hfray.data.schematypes import Column, SchemaTypes
from hfray.grammars import closed
from tests.schemas import REVIEW, TREE


def column(schema: dict, parse_formats: bool = False) -> Column:
    return SchemaTypes(closed(schema), parse_formats).column()


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, pa.string()),
        ({"type": "integer"}, pa.int64()),
        ({"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1}, pa.uint64()),
        ({"type": "number"}, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        ({"type": ["string", "null"]}, pa.string()),
        ({"type": ["integer", "number"]}, pa.float64()),
        ({"enum": ["a", "b", None]}, pa.string()),
        ({"enum": [1, 2]}, pa.int64()),
        ({"enum": [1, 2.5]}, pa.float64()),
        ({"const": True}, pa.bool_()),
        ({"type": "array", "items": {"type": "integer"}}, pa.list_(pa.int64())),
        ({"type": "array", "prefixItems": [{"type": "number"}] * 2, "items": False}, pa.list_(pa.float64())),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, pa.map_(pa.string(), pa.int64())),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, pa.int64()),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, pa.float64()),
        ({"anyOf": [{"const": "a"}, {"type": "string"}]}, pa.string()),
        ({"type": "string", "format": "date-time"}, pa.string()),
    ],
)
def test_types(schema, expected):
    assert column(schema).type == expected
    assert not column(schema).is_json_text


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "array"},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True},
        {"type": ["string", "integer"]},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"anyOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]},
        {"enum": ["a", 1]},
        {"enum": [{"a": 1}, {"a": 2}]},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    ],
)
def test_what_has_no_one_type_is_json_text_and_its_field_says_so(schema):
    found = column(schema)
    assert (found.type, found.is_json_text) == (pa.string(), True)
    assert found.field("x").metadata == {b"hfray.values": b"JSON text"}
    assert found.array(["a", {"b": [1]}, None, 2]).to_pylist() == ['"a"', '{"b": [1]}', None, "2"]


def test_an_object_is_a_struct_in_the_order_of_its_properties():
    found = column(REVIEW)
    assert found.type == pa.struct(
        [("sentiment", pa.string()), ("stars", pa.int64()), ("topics", pa.list_(pa.string()))]
    )
    values = [{"topics": ["a"], "sentiment": "neutral", "stars": 2.0}, None, {"stars": (1 << 53) + 1}]
    assert found.array(values).to_pylist() == [
        {"sentiment": "neutral", "stars": 2, "topics": ["a"]},
        None,
        {"sentiment": None, "stars": (1 << 53) + 1, "topics": None},
    ]


def test_a_recursion_becomes_json_text_at_its_second_level():
    found = column(TREE)
    assert found.type == pa.struct([("name", pa.string()), ("children", pa.string())])
    child = {"name": "b", "children": []}
    (value,) = found.array([{"name": "a", "children": [child]}]).to_pylist()
    assert value == {"name": "a", "children": '[{"name": "b", "children": []}]'}
    itself = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    assert column(itself).type == pa.struct([("next", pa.string())])


def test_references_and_all_of_are_followed():
    schema = {
        "type": "object",
        "properties": {"a": {"allOf": [{"$ref": "#/$defs/A"}], "description": "as pydantic writes it"}},
        "$defs": {"A": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    }
    assert column(schema).type == pa.struct([("a", pa.struct([("n", pa.int64())]))])
    both = {"allOf": [schema, {"properties": {"b": {"type": "string"}}}], "$defs": schema["$defs"]}
    assert set(column(both).type.names) == {"a", "b"}


def test_formats_become_times_if_wanted():
    schema = {"type": "object", "properties": {}}
    schema["properties"] = {name: {"type": "string", "format": name} for name in ("date-time", "date", "email")}
    found = column(schema, parse_formats=True)
    assert found.type == pa.struct(
        [("date-time", pa.timestamp("us", "UTC")), ("date", pa.date32()), ("email", pa.string())]
    )
    (value,) = found.array([{"date-time": "2020-01-02T03:04:05+01:00", "date": "2020-01-02", "email": "a"}]).to_pylist()
    assert value["date-time"] == datetime.datetime(2020, 1, 2, 2, 4, 5, tzinfo=datetime.UTC)
    assert value["date"] == datetime.date(2020, 1, 2)
    with pytest.raises(ValueError):
        found.array([{"date": "2020-13-01"}])


def test_a_map_keeps_its_order():
    found = column({"type": "object", "additionalProperties": {"type": "integer"}})
    assert found.array([{"b": 1, "a": 2}]).to_pylist() == [[("b", 1), ("a", 2)]]
