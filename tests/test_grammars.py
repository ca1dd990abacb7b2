"""Forms of answers as grammars of llguidance."""

from __future__ import annotations

import dataclasses
import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from hfray.grammars import closed, grammar_of, limits, problem_of
from hfray.response import ResponseFormat
from tests.schemas import REVIEW, TREE, chain


def accepts(form: ResponseFormat, text: str) -> bool:
    guide = LLMatcher(LLTokenizer("byte"), grammar_of(form), limits=limits())
    return guide.try_consume_tokens(list(text.encode())) == len(text.encode()) and guide.is_accepting()


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (ResponseFormat("regex", "[0-9]{3}"), ["123"], ["12", "1234", "a"]),
        (ResponseFormat.of_choices(["a", "ab", 'say "x"', "ü\n"]), ["a", "ab", 'say "x"', "ü\n"], ["b", "aab", ""]),
        (ResponseFormat("grammar", 'start: "a" B\nB: /[0-9]+/'), ["a1", "a23"], ["a", "b1"]),
        (ResponseFormat.of_schema({"type": "object"}), ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", "{"]),
        (ResponseFormat.of_schema(TREE), ['{"name":"a","children":[{"name":"b","children":[]}]}'], ['{"name":"a"}']),
    ],
)
def test_what_a_form_accepts(form, good, bad):
    assert problem_of(form) is None
    assert all(accepts(form, text) for text in good)
    assert not any(accepts(form, text) for text in bad)


def test_json_has_one_optional_space_after_a_separator_and_no_other():
    """A small model that may write any white space writes white space until its tokens are used up."""
    form, value = ResponseFormat.of_schema(REVIEW), {"sentiment": "neutral", "stars": 3, "topics": ["a", "b"]}
    assert accepts(form, json.dumps(value))
    assert accepts(form, json.dumps(value, separators=(",", ":")))
    assert not accepts(form, json.dumps(value, indent=1))
    assert not accepts(form, json.dumps(value, separators=(",  ", ": ")))


def test_properties_come_in_the_order_of_the_schema_and_no_others():
    form = ResponseFormat.of_schema(REVIEW)
    assert not accepts(form, '{"stars":3,"sentiment":"neutral","topics":[]}')
    assert not accepts(form, '{"sentiment":"neutral","stars":3,"topics":[],"more":1}')
    opened = ResponseFormat.of_schema(REVIEW | {"additionalProperties": True})
    assert accepts(opened, '{"sentiment":"neutral","stars":3,"topics":[],"more":1}')


def test_closing_leaves_the_parts_of_an_all_of_open():
    part = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}}}
    assert closed({"allOf": [part]})["allOf"][0].get("additionalProperties") is None
    assert closed({"allOf": [part]})["allOf"][0]["properties"]["a"]["additionalProperties"] is False
    assert closed({"anyOf": [part]})["anyOf"][0]["additionalProperties"] is False
    assert closed({"not": part}) == {"not": part | {"properties": closed(part)["properties"]}}


@pytest.mark.parametrize(
    ("form", "answer", "other"),
    [
        (ResponseFormat.of_schema({"enum": ["a/b", 1]}), '"a/b"', '"b"'),
        (ResponseFormat("regex", "a/[0-9]+"), "a/12", "b"),
        (ResponseFormat.of_choices(["yes", "no"]), "no", "maybe"),
    ],
)
def test_the_form_begins_after_the_thought(form, answer, other):
    form = dataclasses.replace(form, after_thought=True)
    assert problem_of(form) is None
    for thought in ("<think>a < b, </thin\n</think>\n\n", "</think>", "already begun</think> "):
        assert accepts(form, thought + answer)
        assert not accepts(form, thought + other)
    assert not accepts(form, answer)
    assert not accepts(form, f"<think>{answer}")


@pytest.mark.parametrize(
    "form",
    [
        ResponseFormat("regex", "(?=a)b"),
        ResponseFormat("grammar", "start: missing"),
        ResponseFormat.of_schema({"type": "objekt"}),
        ResponseFormat.of_schema({"$ref": "https://example.org/schema"}),
        ResponseFormat.of_schema({"type": "string", "pattern": "("}),
    ],
)
def test_a_form_that_cannot_be_compiled_has_a_reason(form):
    assert problem_of(form)


def test_depth_that_would_overflow_the_stack_is_refused_before():
    """llguidance 1.9 ends the process: a client could have stopped the service with one request."""
    rules = "".join(f'r{n}: r{n + 1} | "{n}"\n' for n in range(3000))
    assert "more than 1000 lines" in problem_of(ResponseFormat("grammar", f'start: r0\n{rules}r3000: "x"'))
    assert "more than 200 deep" in problem_of(ResponseFormat.of_schema(chain(2000)))
    assert problem_of(ResponseFormat.of_schema(chain(20))) is None
    assert problem_of(ResponseFormat.of_schema(TREE)) is None


def test_a_wide_schema_is_not_deep():
    wide = {"type": "object", "properties": {f"p{n}": {"enum": [f"{n}", f"{n}{n}"]} for n in range(400)}}
    assert problem_of(ResponseFormat.of_schema(wide)) is None
