"""EBNF grammars of JSON Schemas, read here by llguidance; the contract suite runs them in OpenVINO GenAI."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from hfray.engines.ebnf import after_thought, one_line_ebnf
from hfray.grammars import closed
from tests.schemas import PAIR, REVIEW, TREE


def accepts(schema: dict, text: str) -> bool:
    ebnf = one_line_ebnf(closed(schema))
    assert ebnf is not None
    guide = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(gbnf_to_lark(ebnf)), log_level=0)
    assert not guide.is_error(), guide.get_error()
    return guide.try_consume_tokens(list(text.encode())) == len(text.encode()) and guide.is_accepting()


OPTIONAL = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            REVIEW,
            [
                '{"sentiment":"neutral","stars":3,"topics":[]}',
                '{"sentiment": "neutral", "stars": 3, "topics": ["a\\nü", "b", "c"]}',
            ],
            [
                '{"sentiment":"neutral","stars":6,"topics":[]}',
                '{"sentiment":"neutral","stars":3}',
                '{"sentiment":"neutral","stars":3,"topics":["a","b","c","d"]}',
                '{"sentiment":"neutral","stars":3,"topics":["longer than twelve"]}',
                '{"sentiment":"neutral","stars":3,"topics":[],"more":1}',
                '{\n"sentiment":"neutral","stars":3,"topics":[]}',
            ],
        ),
        (TREE, ['{"name":"a","children":[{"name":"b","children":[]}]}'], ['{"name":"a","children":[1]}']),
        (PAIR, ["[1, 2]", "[1,1]"], ["[1]", "[1,2,1]", "[]"]),
        (
            OPTIONAL,
            ["{}", '{"a":null}', '{"b":null}', '{"a":null,"c":null}', '{"a":null,"b":null,"c":null}'],
            ['{"c":null,"a":null}', '{,"b":null}', '{"a":null,}'],
        ),
        (OPTIONAL | {"required": ["b"]}, ['{"b":null}', '{"b":null,"c":null}'], ["{}", '{"a":null}']),
        (OPTIONAL | {"additionalProperties": {"type": "boolean"}}, ['{"a":null,"x":true}', '{"x":true}'], ['{"x":1}']),
        ({"type": "object"}, ["{}", '{"a":[1,{"b":"c"}],"d":-1.5e3}'], ["[]", "1"]),
        ({"type": "array"}, ["[]", '[1,"a",null]'], ["{}"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"a":1,"b":-2}', "{}"], ['{"a":"b"}']),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, ["[1]", "[1,2,3]"], ["[]", "[01]"]),
        ({"type": ["string", "null"]}, ['"a"', "null"], ["1"]),
        ({"anyOf": [{"type": "integer"}, {"const": "none"}]}, ["12", '"none"'], ['"any"']),
        ({"enum": ["a\"b", 'ü', 1, None, {"a": [1]}]}, ['"a\\"b"', '"ü"', "1", "null", '{"a": [1]}'], ['"b"']),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"abc"', '"a\\n"'], ['"a"', '"abcd"']),
        ({"type": "integer", "minimum": 0}, ["0", "17"], ["-1", "01"]),
        ({"type": "integer", "minimum": 1}, ["1", "170"], ["0", "-1"]),
        ({"type": "integer", "minimum": -2, "maximum": 11}, ["-2", "0", "11"], ["-3", "12", "1.5"]),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 0}, ["[]"], ['["a"]']),
        ({"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": {"type": "boolean"}}}, ["true"], ["1"]),
        ({}, ["1", "[]", '{"a":1}'], ["a"]),
    ],
)  # fmt: skip
def test_what_a_grammar_accepts(schema, good, bad):
    assert [text for text in good if not accepts(schema, text)] == []
    assert [text for text in bad if accepts(schema, text)] == []


def test_property_names_and_texts_are_escaped():
    schema = {"type": "object", "properties": {'say "ü\\"': {"const": 'a\n"b"'}}, "required": ['say "ü\\"']}
    assert accepts(schema, json.dumps({'say "ü\\"': 'a\n"b"'}, ensure_ascii=False))


def test_a_grammar_may_begin_after_a_thought():
    ebnf = after_thought(one_line_ebnf({"enum": ["a", 1]}))
    grammar = LLMatcher.grammar_from_lark(gbnf_to_lark(ebnf))
    for text, fits in {
        "<think>a < b, <</thin\n</think>\n\n1": True,
        '</think>"a"': True,
        "begun<</think> 1": True,
        "1": False,
        "<think>1": False,
        "</think>2": False,
    }.items():
        guide = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
        assert (guide.try_consume_tokens(list(text.encode())) == len(text) and guide.is_accepting()) == fits, text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "a+"},
        {"type": "string", "format": "date"},
        {"type": "number", "minimum": 0},
        {"type": "integer", "minimum": 0, "maximum": 100_000},
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "object", "patternProperties": {"a": {}}},
        {"allOf": [{"type": "object"}, {"type": "object"}]},
        {"type": "object", "properties": {"a": {}}, "required": ["b"]},
        {"$ref": "#/$defs/A", "properties": {"b": {}}, "$defs": {"A": {"type": "object"}}},
        {"minLength": 3},
        {"required": ["a"]},
        {"additionalProperties": {"type": "boolean"}},
        {"anyOf": [{"type": "string"}], "$ref": "#"},
        False,
    ],
)
def test_what_only_genai_can_convert_is_left_to_it(schema):
    assert one_line_ebnf(schema) is None
