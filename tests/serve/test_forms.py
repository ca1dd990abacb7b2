"""The forms that requests ask for, and what a hostile one costs."""

from __future__ import annotations

import json

import pytest

from hfray.response import ANY_OBJECT, ResponseFormat
from hfray.serve.forms import MAX_BOUND, MAX_CHARACTERS, check_form, largest_bound
from hfray.serve.protocol import ChatRequest
from tests.schemas import REVIEW


def parse(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate_json(json.dumps({"messages": [{"role": "user", "content": "x"}], **fields}))


def json_schema(schema: object, **more: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ResponseFormat("schema", ANY_OBJECT, None)),
        ({"response_format": json_schema(REVIEW, strict=True)}, ResponseFormat.of_schema(REVIEW, None)),
        ({"structured_outputs": {"json": REVIEW}}, ResponseFormat.of_schema(REVIEW, None)),
        ({"structured_outputs": {"regex": "a+"}}, ResponseFormat("regex", "a+", None)),
        ({"structured_outputs": {"choice": ["a", "b"]}}, ResponseFormat.of_choices(["a", "b"], None)),
        ({"structured_outputs": {"grammar": "start: /a/"}}, ResponseFormat("grammar", "start: /a/", None)),
        ({"structured_outputs": {"json_object": True}}, ResponseFormat("schema", ANY_OBJECT, None)),
    ],
)
def test_forms_of_requests(fields, expected):
    assert parse(**fields).form == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
    ],
)
def test_impossible_forms_are_refused(fields):
    with pytest.raises(ValueError):
        parse(**fields)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (ResponseFormat("regex", "a" * (MAX_CHARACTERS + 1)), "characters; at most"),
        (ResponseFormat("regex", "(?=a)b"), "cannot be compiled"),
        (ResponseFormat.of_schema({"type": "objekt"}), "cannot be compiled"),
        (ResponseFormat.of_schema({"$ref": "https://example.org/schema"}), "does not name a part"),
        (ResponseFormat.of_schema({"type": "string", "maxLength": MAX_BOUND + 1}), "at most 4096 is accepted"),
        (ResponseFormat.of_choices(["a", ""]), "must not be empty"),
        (ResponseFormat("grammar", "start: missing"), "cannot be compiled"),
    ],
)
def test_what_cannot_be_compiled_has_a_reason(form, words):
    with pytest.raises(ValueError, match=words):
        check_form(form, "transformers")


def test_a_schema_of_a_client_passes():
    check_form(ResponseFormat.of_schema(REVIEW, None), "openvino")
    check_form(ResponseFormat("grammar", 'root ::= "a"', None), "openvino")  # EBNF: only the engine knows


def test_bounds_are_found_at_any_depth():
    schema: dict = {"maxItems": 7}
    for _ in range(500):
        schema = {"items": schema}
    assert largest_bound(schema) == 7
    assert largest_bound({"properties": {"maxLength": {"type": "string"}}}) == 0
