"""Arrow types for JSON values, derived from all values of a column, so that each value comes out as it went in.

A column with values of one kind gets that kind's Arrow type. Objects with the same keys become structs. A column that
Arrow could store only by changing values becomes JSON text: objects with different keys, strings among numbers,
integers beyond 64 bits, integers beyond 2^53 among floats, and values nested more than MAX_NESTING levels deep. The
metadata of such a column's field says so (`arrow_field`), in the output's Parquet files too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

# LARGE_INT: 64-bit integers that a float cannot represent exactly.
NULL, BOOL, INT, LARGE_INT, FLOAT, STRING, JSON = "null", "bool", "int", "large_int", "float", "string", "json"
EXACT_FLOAT = 1 << 53
JSON_TEXT = {b"hfray.values": b"JSON text, except values that were strings"}  # metadata of fields of kind JSON
MAX_NESTING = 32  # Parquet's reader accepts 49 nested lists at most
ARROW: dict[str, pa.DataType] = {
    NULL: pa.string(),
    BOOL: pa.bool_(),
    INT: pa.int64(),
    LARGE_INT: pa.int64(),
    FLOAT: pa.float64(),
    STRING: pa.string(),
    JSON: pa.string(),
}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list with items of one kind."""

    item: Kind


@dataclass(frozen=True, slots=True)
class Struct:
    """An object with these keys, in this order."""

    fields: tuple[tuple[str, Kind], ...]


Kind: TypeAlias = "str | ListOf | Struct"


def kind_of(value: JsonValue, depth: int = 0) -> Kind:
    """The kind of one JSON value: the name of a simple kind, a ListOf or a Struct."""
    if value is None:
        return NULL
    if isinstance(value, str):
        return STRING
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        if abs(value) <= EXACT_FLOAT:
            return INT
        return LARGE_INT if -(1 << 63) <= value < 1 << 63 else JSON
    if isinstance(value, float):
        return FLOAT
    if depth == MAX_NESTING:
        return JSON
    if isinstance(value, list):
        kind: Kind = NULL
        for item in value:
            kind = merge(kind, kind_of(item, depth + 1))
        return _list_of(kind)
    return _struct([(key, kind_of(item, depth + 1)) for key, item in value.items()])


def merge(a: Kind, b: Kind) -> Kind:
    """The kind that stores values of both kinds unchanged."""
    if a == b or b == NULL:
        return a
    if a == NULL:
        return b
    if isinstance(a, str) and isinstance(b, str):
        pair = {a, b}
        return FLOAT if pair == {INT, FLOAT} else LARGE_INT if pair == {INT, LARGE_INT} else JSON
    if isinstance(a, ListOf) and isinstance(b, ListOf):
        return _list_of(merge(a.item, b.item))
    if isinstance(a, Struct) and isinstance(b, Struct) and [key for key, _ in a.fields] == [key for key, _ in b.fields]:
        return _struct([(key, merge(x, y)) for (key, x), (_, y) in zip(a.fields, b.fields, strict=True)])
    return JSON


def _list_of(item: Kind) -> Kind:
    return JSON if item == JSON else ListOf(item)


def _struct(fields: list[tuple[str, Kind]]) -> Kind:
    """A struct; Arrow has no empty structs in Parquet, and JSON text inside a struct would be ambiguous."""
    return JSON if not fields or any(kind == JSON for _, kind in fields) else Struct(tuple(fields))


def arrow_type(kind: Kind) -> pa.DataType:
    """The Arrow type of a kind. JSON text is a string."""
    if isinstance(kind, str):
        return ARROW[kind]
    if isinstance(kind, ListOf):
        return pa.list_(arrow_type(kind.item))
    return pa.struct([pa.field(key, arrow_type(item)) for key, item in kind.fields])


def arrow_field(name: str, kind: Kind) -> pa.Field:
    """The Arrow field of a column. The metadata of a column of JSON text is JSON_TEXT."""
    return pa.field(name, arrow_type(kind), metadata=JSON_TEXT if kind == JSON else None)


def to_array(values: Sequence[JsonValue], kind: Kind) -> pa.Array:
    """JSON values as an Arrow array of the kind's type.

    Raises:
        pa.ArrowException, UnicodeError, OverflowError: a value does not have this kind.
    """
    if kind == JSON:
        values = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(values, type=arrow_type(kind))


class Columns:
    """The kinds of all columns of a JSONL table, collected row by row."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self._seen: set[tuple[object, ...]] = set()

    def add(self, row: Mapping[str, JsonValue]) -> None:
        """Merge the kinds of one row's values into the columns."""
        signature = (*row, *map(type, row.values()))
        simple = not any(type(v) in (dict, list, int) for v in row.values())
        if simple and signature in self._seen:
            return
        if simple:
            self._seen.add(signature)
        for key, value in row.items():
            self.kinds[key] = merge(self.kinds.get(key, NULL), kind_of(value))
