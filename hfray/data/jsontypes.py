"""Arrow types for JSON values, found by looking at all of them, so that every value comes out as it went in.

A column whose values are of one kind gets that kind's type; objects that share their keys become structs. Anything
that Arrow could only hold by changing it (objects of differing keys, strings among numbers) stays JSON text.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

NULL, BOOL, INT, FLOAT, STRING, JSON = "null", "bool", "int", "float", "string", "json"
EXACT_FLOAT = 1 << 53  # integers beyond it change when they become floats
ARROW = {NULL: pa.string(), BOOL: pa.bool_(), INT: pa.int64(), FLOAT: pa.float64(), STRING: pa.string()}
ARROW[JSON] = pa.string()
Kind = str | tuple


def kind_of(value: Any) -> Kind:
    """The kind of one JSON value: a name, ("list", kind) or ("struct", ((key, kind), ...))."""
    if value is None:
        return NULL
    if isinstance(value, str):
        return STRING
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return INT if -(1 << 63) <= value < 1 << 63 else JSON
    if isinstance(value, float):
        return FLOAT
    if isinstance(value, list):
        kind: Kind = NULL
        for item in value:
            kind = merge(kind, kind_of(item))
        return JSON if kind == JSON else ("list", kind)
    fields = tuple((key, kind_of(item)) for key, item in value.items())
    return JSON if not fields or any(kind == JSON for _, kind in fields) else ("struct", fields)


def merge(a: Kind, b: Kind) -> Kind:
    """The kind that holds values of both kinds unchanged."""
    if a == b or b == NULL:
        return a
    if a == NULL:
        return b
    if {a, b} == {INT, FLOAT}:
        return FLOAT
    if isinstance(a, tuple) and isinstance(b, tuple) and a[0] == b[0]:
        if a[0] == "list":
            kind = merge(a[1], b[1])
            return JSON if kind == JSON else ("list", kind)
        if [key for key, _ in a[1]] == [key for key, _ in b[1]]:
            fields = tuple((key, merge(x, y)) for (key, x), (_, y) in zip(a[1], b[1], strict=True))
            return JSON if any(kind == JSON for _, kind in fields) else ("struct", fields)
    return JSON


def arrow_type(kind: Kind) -> pa.DataType:
    """The Arrow type of a kind; JSON text is a string."""
    if isinstance(kind, str):
        return ARROW[kind]
    if kind[0] == "list":
        return pa.list_(arrow_type(kind[1]))
    return pa.struct([pa.field(key, arrow_type(item)) for key, item in kind[1]])


def to_array(values: list[Any], kind: Kind) -> pa.Array:
    """JSON values as an Arrow array of the kind's type."""
    if kind == JSON:
        values = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(values, type=arrow_type(kind))


class Columns:
    """Kinds of all columns of a JSONL table, gathered row by row. Integers too large for a float keep a column JSON."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self._large: set[str] = set()
        self._seen: set[tuple] = set()

    def add(self, row: dict[str, Any]) -> None:
        """Take one row's values into account."""
        signature = (*row, *map(type, row.values()))
        simple = not any(type(v) in (dict, list, int) for v in row.values())
        if simple and signature in self._seen:
            return
        self._seen.add(signature)
        for key, value in row.items():
            self.kinds[key] = merge(self.kinds.get(key, NULL), kind_of(value))
            if type(value) is int and abs(value) > EXACT_FLOAT:
                self._large.add(key)

    def result(self) -> dict[str, Kind]:
        """The kinds, column by column, in the order in which the columns first came."""
        return {k: JSON if kind == FLOAT and k in self._large else kind for k, kind in self.kinds.items()}
