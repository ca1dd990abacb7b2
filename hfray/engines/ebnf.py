"""JSON Schemas as EBNF grammars of JSON on one line, for OpenVINO GenAI and vLLM.

Both turn a schema into a grammar that allows any white space (GenAI 2026.4, vLLM 0.32). A small model then writes white
space until its tokens are used up. These grammars allow one space after a separator, as llguidance does on the other engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from hfray.grammars import resolve
from hfray.reasoning import END_OF_THOUGHT

MAX_RANGE = 300  # integers of a range that are written out
STRICTER = ("pattern", "format", "multipleOf", "patternProperties", "minProperties", "maxProperties", "prefixItems")
BASICS = {
    # As in xgrammar's own conversion. With ranges of characters instead, it accepts bytes that it then refuses (2026.4).
    "char": r'[^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])',
    "string": r'"\"" char* "\""',
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,17})',
    "number": r'integer ("." [0-9]{1,17})? ([eE] [+-]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "comma": '", " | ","',
    "colon": '": " | ":"',
    "pair": "string colon any",
    "object": '"{" (pair (comma pair)*)? "}"',
    "array": '"[" (any (comma any)*)? "]"',
    "any": "object | array | string | number | boolean | null",
}


class _UnsupportedError(Exception):
    """A schema with a keyword that these grammars cannot express."""


def one_line_ebnf(schema: Mapping[str, Any]) -> str | None:
    """The grammar of a schema; None if the schema has a keyword that only GenAI's own conversion enforces."""
    rules = _Rules(schema)
    try:
        root = rules.of(schema)
    except (_UnsupportedError, RecursionError):
        return None
    lines = {"root": root, **BASICS, **rules.found}
    return "".join(f"{name} ::= {text}\n" for name, text in lines.items())


def after_thought(ebnf: str) -> str:
    """A grammar behind a thought: any text up to the tag that ends it.

    Rule `thoughtN` has seen N characters of the tag. The tag's first character occurs in it once, so after any other
    character than the next one the search begins again.
    """
    first, *rest = END_OF_THOUGHT
    states = [f'thought0 ::= [^{first}] thought0 | "{first}" thought1']
    for number, character in enumerate(rest, start=1):
        onward = f"thought{number + 1}" if number < len(rest) else "spaces answer"
        states.append(
            f'thought{number} ::= "{character}" {onward} | "{first}" thought1 | [^{first}{character}] thought0'
        )
    answer = ebnf.replace("root ::=", "answer ::=", 1)
    return "\n".join(["root ::= thought0", r"spaces ::= [ \n\t]*", *states, answer])


class _Rules:
    """The rules of one schema. A reference becomes a rule of its own, so recursion needs nothing special."""

    def __init__(self, whole: Mapping[str, Any]) -> None:
        self.found: dict[str, str] = {}
        self._whole, self._refs = whole, dict[str, str]()

    def of(self, schema: object) -> str:
        """The expression of a part, in brackets if it has alternatives."""
        if schema is True or schema == {}:
            return "any"
        if not isinstance(schema, Mapping):
            raise _UnsupportedError
        part = cast("Mapping[str, Any]", schema)
        if any(name in part for name in STRICTER):
            raise _UnsupportedError
        for name in ("$ref", "anyOf", "oneOf", "allOf"):
            if name in part:
                return self._combined(part, name)
        if "enum" in part or "const" in part:
            values = part.get("enum", [part.get("const")])
            return either(literal(json.dumps(value, ensure_ascii=False)) for value in values)
        kinds = part["type"] if "type" in part else _implied(part)
        kinds = kinds if isinstance(kinds, list) else [kinds]
        return either(self._of_kind(kind, part) for kind in kinds)

    def _combined(self, part: Mapping[str, Any], name: str) -> str:
        if any(key in part for key in ("type", "properties", "items", "enum", "const", "required")):
            raise _UnsupportedError  # both sides restrict
        if sum(key in part for key in ("$ref", "anyOf", "oneOf", "allOf")) > 1:
            raise _UnsupportedError
        if name == "allOf":
            if len(part[name]) > 1:
                raise _UnsupportedError
            return self.of(part[name][0])
        if name != "$ref":
            return either(self.of(option) for option in part[name])
        ref = part["$ref"]
        if ref not in self._refs:
            rule = self._refs[ref] = f"ref{len(self._refs)}"
            self.found[rule] = self.of(resolve(self._whole, ref))
        return self._refs[ref]

    def _of_kind(self, kind: str | None, part: Mapping[str, Any]) -> str:
        if kind == "object" and (part.get("properties") or "additionalProperties" in part):
            return self._object(part)
        if kind == "array":
            return self._array(part)
        if kind == "string" and ("minLength" in part or "maxLength" in part):
            return rf'"\"" {_repeated("char", part.get("minLength", 0), part.get("maxLength"))} "\""'
        if kind in ("integer", "number"):
            return _number(kind, part)
        return kind or "any"

    def _object(self, part: Mapping[str, Any]) -> str:
        """Properties in their order. `later` holds the rest after a written property, `first` after none."""
        required, others = set(part.get("required", ())), part.get("additionalProperties", True)
        properties = part.get("properties") or {}
        if required - properties.keys():
            raise _UnsupportedError
        more = None if others is False else f"string colon {self.of(others)}"
        first = self._rule('""' if more is None else f"({more} (comma {more})*)?")
        later = self._rule('""' if more is None else f"(comma {more})*")
        for name, value in reversed(properties.items()):
            pair = f"{literal(json.dumps(name, ensure_ascii=False))} colon {self.of(value)}"
            begun = f"{pair} {later}"
            first = self._rule(begun if name in required else f"{begun} | {first}")
            later = self._rule(f"comma {pair} {later}" if name in required else f"(comma {pair})? {later}")
        return f'"{{" {first} "}}"'

    def _array(self, part: Mapping[str, Any]) -> str:
        low, high = part.get("minItems", 0), part.get("maxItems")
        if high == 0 or part.get("items") is False:
            return '"[]"'
        item = self.of(part.get("items", True))
        item = item if item.isidentifier() else self._rule(item)  # xgrammar copies what is repeated, so a name only
        whole = f"{item} {_repeated(f'(comma {item})', max(0, low - 1), None if high is None else high - 1)}"
        return f'"[" {whole} "]"' if low else f'"[" ({whole})? "]"'

    def _rule(self, text: str) -> str:
        name = f"rule{len(self.found)}"
        self.found[name] = text
        return name


def _implied(part: Mapping[str, Any]) -> str | None:
    """The type of a part without `type`. Other keywords would restrict some types only."""
    if "properties" in part:
        return "object"
    if "items" in part:
        return "array"
    if any(name.startswith(("min", "max", "exclusive", "required", "additional")) for name in part):
        raise _UnsupportedError
    return None


def _number(kind: str, part: Mapping[str, Any]) -> str:
    if "exclusiveMinimum" in part or "exclusiveMaximum" in part:
        raise _UnsupportedError
    low, high = part.get("minimum"), part.get("maximum")
    if low is None and high is None:
        return kind
    if kind == "number" or not isinstance(low, int) or not isinstance(high, int | None):
        raise _UnsupportedError
    if high is not None and high - low < MAX_RANGE:
        return either(f'"{number}"' for number in range(low, high + 1))
    if high is None and low in (0, 1):
        return '("0" | [1-9] [0-9]{0,17})' if low == 0 else "[1-9] [0-9]{0,17}"
    raise _UnsupportedError


def _repeated(text: str, low: int, high: int | None) -> str:
    return '""' if high == 0 else f"{text}{{{low},{'' if high is None else high}}}"


def literal(text: str) -> str:
    """A text of the grammar: EBNF escapes as JSON does."""
    return json.dumps(text, ensure_ascii=True) if text.isascii() else json.dumps(text, ensure_ascii=False)


def either(options: Iterable[str]) -> str:
    """One of the options, in brackets if there are several."""
    found = list(options)
    if not found:
        raise _UnsupportedError
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"
