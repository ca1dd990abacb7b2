"""Arrow types of JSON Schemas: one type for all answers of a job, known before the first row.

Objects become structs in the order of their properties, maps if they name none, arrays lists. Where Arrow has no one
type (unions, recursion, open objects), the value becomes JSON text, and the metadata of its field says so.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from hfray.data.jsontypes import MAX_NESTING, JsonValue
from hfray.grammars import resolve

JSON_TEXT = {b"hfray.values": b"JSON text"}
SIMPLE = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "null": pa.null(),
}
INT64 = 1 << 63
ROOT = ("#",)  # the `$ref` that names the whole schema
Convert = Callable[[Any], object]


def _same(value: Any) -> object:
    return value


def _json_text(value: Any) -> object:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _timestamp(value: str) -> object:
    time = datetime.datetime.fromisoformat(value)
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Column:
    """The Arrow type of a schema, and how a JSON value of that schema becomes a value of the type."""

    type: pa.DataType
    convert: Convert = _same
    is_json_text: bool = False

    def field(self, name: str) -> pa.Field:
        """The Arrow field. Its metadata tells if it holds JSON text."""
        return pa.field(name, self.type, metadata=JSON_TEXT if self.is_json_text else None)

    def array(self, values: list[JsonValue]) -> pa.Array:
        """Values as an array. Raises ValueError, TypeError or pa.ArrowException if Arrow cannot store one of them."""
        return pa.array([None if value is None else self.convert(value) for value in values], self.type)


JSON_COLUMN = Column(pa.string(), _json_text, is_json_text=True)


class SchemaTypes:
    """Derives the columns of one schema.

    Args:
        parse_formats: texts of format date-time and date become timestamps and dates.
    """

    def __init__(self, schema: Mapping[str, Any], parse_formats: bool = False) -> None:
        self._whole, self._parse_formats = schema, parse_formats

    def column(self) -> Column:
        """The column of the whole schema."""
        return self._of(self._whole, ROOT)

    def properties(self) -> dict[str, Column]:
        """The columns of the top-level properties."""
        merged = self._merged(self._whole, ROOT) or {}
        above = (*ROOT, str(merged.get("$from", "")))
        return {name: self._of(part, above) for name, part in merged.get("properties", {}).items()}

    def _of(self, schema: object, above: tuple[str, ...]) -> Column:
        """The column of a part. `above` holds the `$ref`s that led here: a repeated one is a recursion."""
        merged = self._merged(schema, above)
        if merged is None or len(above) > MAX_NESTING:
            return JSON_COLUMN
        above = (*above, str(merged.get("$from", "")))
        for name in ("anyOf", "oneOf"):
            if name in merged:
                return self._union(merged, name, above)
        if "enum" in merged or "const" in merged:
            return self._of_values(merged.get("enum", [merged.get("const")]), merged, above)
        kinds = merged.get("type")
        kinds = [kind for kind in kinds if kind != "null"] if isinstance(kinds, list) else [kinds]
        if set(kinds) == {"integer", "number"}:
            kinds = ["number"]
        return self._of_kind(kinds[0], merged, above) if len(kinds) == 1 else JSON_COLUMN

    def _of_kind(self, kind: Any, schema: Mapping[str, Any], above: tuple[str, ...]) -> Column:
        if kind == "object" or (kind is None and "properties" in schema):
            return self._struct(schema, above)
        if kind == "array" or (kind is None and "items" in schema):
            return self._list(schema, above)
        if kind == "string" and self._parse_formats and schema.get("format") == "date-time":
            return Column(pa.timestamp("us", "UTC"), _timestamp)
        if kind == "string" and self._parse_formats and schema.get("format") == "date":
            return Column(pa.date32(), datetime.date.fromisoformat)
        if kind == "integer" and schema.get("minimum", -1) >= 0 and schema.get("maximum", 0) >= INT64:
            return Column(pa.uint64(), int)
        if kind == "integer":
            return Column(pa.int64(), int)  # JSON Schema counts 2.0 as an integer
        if kind == "number":
            return Column(pa.float64(), float)
        return Column(SIMPLE[kind]) if kind in SIMPLE else JSON_COLUMN

    def _struct(self, schema: Mapping[str, Any], above: tuple[str, ...]) -> Column:
        properties = schema.get("properties") or {}
        others = schema.get("additionalProperties", not properties)
        if not properties and isinstance(others, dict) and others and "patternProperties" not in schema:
            inner = self._of(others, above)
            return Column(
                pa.map_(pa.string(), inner.field("value")),
                lambda value: [(key, _apply(inner, item)) for key, item in value.items()],
            )
        if not properties or others or "patternProperties" in schema:
            return JSON_COLUMN  # without names, or with more properties than a struct would hold
        columns = {name: self._of(part, above) for name, part in properties.items()}
        return Column(
            pa.struct([column.field(name) for name, column in columns.items()]),
            lambda value: {name: _apply(column, value.get(name)) for name, column in columns.items()},
        )

    def _list(self, schema: Mapping[str, Any], above: tuple[str, ...]) -> Column:
        items, first = schema.get("items"), schema.get("prefixItems") or []
        parts = [*first, *([items] if isinstance(items, dict) else [])]
        columns = [self._of(part, above) for part in parts]
        closed = items is False or isinstance(items, dict) or schema.get("maxItems", len(first) + 1) <= len(first)
        if not columns or not closed or any(column.type != columns[0].type for column in columns):
            return JSON_COLUMN
        inner = columns[0]
        if inner.is_json_text:
            return JSON_COLUMN
        return Column(pa.list_(inner.field("item")), lambda value: [_apply(inner, item) for item in value])

    def _union(self, schema: Mapping[str, Any], name: str, above: tuple[str, ...]) -> Column:
        """The type that all alternatives share, null apart; else JSON text."""
        rest = {key: value for key, value in schema.items() if key != name}
        found: list[Column] = []
        for part in schema[name]:
            column = self._of({"allOf": [rest, part]} if _decides(rest) else part, above)
            if not pa.types.is_null(column.type):
                found.append(column)
        if not found:
            return Column(pa.null())
        kinds = {str(column.type) for column in found}
        if kinds == {"int64", "double"}:
            return Column(pa.float64(), float)
        alike = len(kinds) == 1 and not pa.types.is_nested(found[0].type)
        return found[0] if len(found) == 1 or alike else JSON_COLUMN

    def _of_values(self, values: list[JsonValue], schema: Mapping[str, Any], above: tuple[str, ...]) -> Column:
        """The type of an enum's values; its `type` decides if it has one."""
        declared = schema.get("type")
        if isinstance(declared, str) and declared not in ("object", "array"):
            return self._of_kind(declared, schema, above)
        kinds = {_kind(value) for value in values} - {"null"}
        if kinds == {"integer", "number"}:
            kinds = {"number"}
        if not kinds:
            return Column(pa.null())
        kind = kinds.pop()
        return JSON_COLUMN if kinds or kind in ("object", "array") else self._of_kind(kind, {}, above)

    def _merged(self, schema: object, above: tuple[str, ...]) -> dict[str, Any] | None:
        """A schema with its `$ref` and `allOf` put in place. None: a recursion, or a schema that allows anything."""
        if not isinstance(schema, Mapping):
            return None
        found = dict(cast("Mapping[str, Any]", schema))
        ref = found.pop("$ref", None)
        parts = list(found.pop("allOf", []))
        if ref is not None:
            if ref in above:
                return None
            parts.insert(0, resolve(self._whole, str(ref)))
        for part in parts:
            more = self._merged(part, (*above, ref) if ref else above)
            if more is None:
                return None
            _merge(found, more)
        if ref is not None:
            found["$from"] = ref
        return found


def _apply(column: Column, value: Any) -> object:
    return None if value is None else column.convert(value)


def _decides(schema: Mapping[str, Any]) -> bool:
    return any(name in schema for name in ("type", "properties", "items", "enum", "const"))


def _merge(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add the keywords of a part to those of the whole."""
    for name, value in more.items():
        if name == "properties":
            found[name] = {**value, **found.get(name, {})}
        elif name == "required":
            found[name] = [*found.get(name, []), *value]
        else:
            found.setdefault(name, value)


def _kind(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "boolean"
    names: dict[type, str] = {
        type(None): "null",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return names[type(value)]
