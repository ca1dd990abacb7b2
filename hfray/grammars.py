"""Response formats as grammars of llguidance, which torch's engines and the fake engine run, and which check a format.

llguidance compiles within limits that count work, not seconds: a hostile schema ends with an error after a fraction of
a second on any machine. It recurses, and a chain of a thousand references overflows its stack and ends the process
(1.9). So depth is limited here, before llguidance sees the form.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]  Python's own parser, which has no public name
from typing import TYPE_CHECKING, Any

from hfray.reasoning import END_OF_THOUGHT
from hfray.response import ResponseFormat

if TYPE_CHECKING:
    from llguidance import LLParserLimits

# One optional space after a separator: the two common ways to write JSON on one line. Where any white space is
# allowed, a small model writes white space until its tokens are used up.
JSON_STYLE: Any = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False, "lenient": True}
SCHEMAS = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
SCHEMAS += ("unevaluatedItems", "unevaluatedProperties", "additionalItems")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
MAPPINGS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
MAX_DEPTH = 200  # schemas inside schemas, references followed; llguidance survives 600
MAX_LINES = 1000  # of a grammar, so rules that refer to each other at most; llguidance survives 2000
MAX_REPEATS = 4096  # of a part of a regular expression; xgrammar writes repetitions out
PLAIN = ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT")
OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")  # say which other properties there may be


def grammar_of(response: ResponseFormat) -> str:
    """The format as llguidance's matcher takes it. Does not compile it. Raises ValueError."""
    from llguidance import LLMatcher

    if response.after_thought:
        return LLMatcher.grammar_from_lark(_after_thought(response))
    if response.kind == "schema":
        return LLMatcher.grammar_from_json_schema(closed(response.schema), overrides=JSON_STYLE)
    if response.kind == "regex":
        return LLMatcher.grammar_from_regex(response.text)
    if response.kind == "choice":
        choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in response.choices)
        return LLMatcher.grammar_from_lark(f"start: {choices}")
    return LLMatcher.grammar_from_lark(_lark(response.text))


def _after_thought(response: ResponseFormat) -> str:
    """A thought of any text, the tag that ends it, and the answer in its form."""
    if response.kind == "schema":
        answer = "%json " + json.dumps({"x-guidance": JSON_STYLE, **closed(response.schema)}, ensure_ascii=False)
    elif response.kind == "choice":
        answer = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in response.choices)
    else:
        answer = "/" + response.text.replace("/", r"\/") + "/"
    thought = f'thought[suffix="{END_OF_THOUGHT}"]: /(?s:.*)/'
    return f"start: thought SPACE answer\n{thought}\nSPACE: /\\s*/\nanswer: {answer}\n"


def _lark(text: str) -> str:
    """A grammar as Lark; EBNF (GBNF) is converted. Raises ValueError if it is neither."""
    from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

    try:
        return any_to_lark(text)
    except GbnfToLarkError as error:
        raise ValueError(str(error)) from error


@functools.lru_cache(maxsize=256)
def problem_of(response: ResponseFormat) -> str | None:
    """Why llguidance cannot compile a format; None if it can."""
    from llguidance import LLMatcher

    try:
        if response.kind == "schema" and _is_deeper(response.schema, MAX_DEPTH):
            return f"schemas are nested more than {MAX_DEPTH} deep, references followed"
        if response.kind == "grammar" and response.text.count("\n") >= MAX_LINES:
            return f"the grammar has more than {MAX_LINES} lines"
        grammar = grammar_of(response)
    except (ValueError, RecursionError) as error:
        return str(error)
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits())
    return " ".join(messages[0].split()) if failed else None


def xgrammar_problem(response: ResponseFormat) -> str | None:
    """Why the xgrammar inside OpenVINO GenAI and vLLM might not compile a format; None if it can.

    GenAI compiles in its steps, and a format that it cannot compile breaks the whole pipeline (2026.4). So only formats
    that both libraries understand get there.
    """
    problem = problem_of(response)
    if problem:
        return problem
    if response.kind == "regex":
        return regex_problem(response.text)
    if response.kind == "grammar":
        from llguidance.gbnf_to_lark import is_lark_syntax

        return "it is written in Lark, and this engine takes EBNF" if is_lark_syntax(response.text) else None
    if response.kind == "schema":
        patterns = (value for name, value in _members(response.schema) if name == "pattern" and isinstance(value, str))
        return next((found for found in map(regex_problem, patterns) if found), None)
    return None


def regex_problem(pattern: str) -> str | None:
    """What a regular expression has beyond characters, classes, groups, alternatives and repetitions; None: nothing."""
    try:
        parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return _beyond_plain(parsed, 1)


def _beyond_plain(parsed: Any, repeats: int) -> str | None:
    for code, argument in parsed:
        name = str(code)
        inner: list[Any] = []
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, part = argument
            repeats_here = repeats * max(1, low if high == _parser.MAXREPEAT else high)
            if repeats_here > MAX_REPEATS:
                return f"repetitions inside repetitions come to more than {MAX_REPEATS}"
            found = _beyond_plain(part, repeats_here)
            if found:
                return found
        elif name == "SUBPATTERN":
            inner = [argument[3]] if not argument[1] and not argument[2] else [[("a flag", None)]]
        elif name == "BRANCH":
            inner = argument[1]
        elif name not in PLAIN:
            return f"{name.lower()} is not supported in a regular expression"
        for part in inner:
            found = _beyond_plain(part, repeats)
            if found:
                return found
    return None


def _members(value: object) -> Iterator[tuple[str, object]]:
    """Every name and value in nested JSON."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name, item
            yield from _members(item)
    elif isinstance(value, list):
        for item in value:
            yield from _members(item)


def limits() -> LLParserLimits:
    """How much work a grammar may cost, per compilation and per token."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


def _is_deeper(schema: dict[str, Any], limit: int) -> bool:
    """Whether containers are nested deeper than `limit` on any path, references followed; a recursion counts once."""
    depths: dict[int, int] = {}  # the largest depth at which each container was met
    path: set[int] = set()

    def visit(item: object, depth: int) -> bool:
        if not isinstance(item, dict | list) or id(item) in path or depths.get(id(item), 0) >= depth:
            return False
        if depth > limit:
            return True
        depths[id(item)] = depth
        path.add(id(item))
        below = list(item.values() if isinstance(item, dict) else item)
        ref = item.get("$ref") if isinstance(item, dict) else None
        below += [resolve(schema, ref)] if isinstance(ref, str) else []
        found = any(visit(part, depth + 1) for part in below)
        path.remove(id(item))
        return found

    return visit(schema, 1)


def resolve(schema: Mapping[str, Any], ref: str) -> object | None:
    """The part of a schema that a `$ref` names; None if there is no such part."""
    if ref == "#":
        return schema
    if not ref.startswith("#/"):
        return None
    found: Any = schema
    for step in ref[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(name)] if name.isdigit() and int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    return found


def closed(schema: Any) -> Any:
    """A schema whose objects have no other properties than those that it names, unless it says otherwise.

    JSON Schema allows any further property, and a model would go on to invent some. Parts of an `allOf` stay open,
    because each part names some of the properties only.
    """
    return _closed(schema, close=True)


def _closed(schema: Any, close: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for name in SCHEMAS:
        if isinstance(found.get(name), dict):
            found[name] = _closed(found[name], close=name not in ("not", "if", "then", "else"))
    for name in LISTS:
        if isinstance(found.get(name), list):
            found[name] = [_closed(part, close=close and name != "allOf") for part in found[name]]
    for name in MAPPINGS:
        if isinstance(found.get(name), dict):
            whole = name in ("properties", "patternProperties")
            referred = name in ("$defs", "definitions")
            found[name] = {
                key: _closed(part, close=whole or (referred and not _composed(schema)))
                for key, part in found[name].items()
            }
    if close and "properties" in found and "allOf" not in found and not any(name in found for name in OPEN):
        found["additionalProperties"] = False
    return found


def _composed(schema: Any) -> bool:
    """Whether an `allOf` occurs anywhere, so that a definition may be a part of one."""
    return '"allOf"' in json.dumps(schema)
