"""Finished answers are checked against the form that they must have."""

from __future__ import annotations

import json

import pytest

from hfray.inference.validator import validator_of
from hfray.response import ResponseFormat
from tests.schemas import REVIEW, TREE

GOOD = {"sentiment": "neutral", "stars": 3, "topics": ["a"]}


def check(form: ResponseFormat, text: str, finish_reason: str = "stop") -> tuple[object, str | None]:
    return validator_of(form).check(text, finish_reason)


def test_an_answer_that_fits_is_its_value():
    assert check(ResponseFormat.of_schema(REVIEW), json.dumps(GOOD, indent=2)) == (GOOD, None)
    tree = {"name": "a", "children": [{"name": "b", "children": []}]}
    assert check(ResponseFormat.of_schema(TREE), json.dumps(tree)) == (tree, None)
    assert check(ResponseFormat("regex", "[0-9]+"), "12") == ("12", None)
    assert check(ResponseFormat.of_choices(["a", "ab"]), "a") == ("a", None)
    assert check(ResponseFormat("grammar", 'start: "a"'), "a") == ("a", None)


@pytest.mark.parametrize(
    ("form", "text", "words"),
    [
        (ResponseFormat.of_schema(REVIEW), json.dumps(GOOD | {"stars": 9}), "9 is greater than the maximum of 5"),
        (ResponseFormat.of_schema(REVIEW), json.dumps(GOOD | {"stars": 9}), "(at stars)"),
        (ResponseFormat.of_schema(REVIEW), json.dumps(GOOD)[:-1], "it is not JSON"),
        (ResponseFormat.of_schema(REVIEW), "", "it is not JSON"),
        (ResponseFormat.of_schema({"type": "number"}), "NaN", "NaN is not a JSON value"),
        (ResponseFormat.of_schema({"type": "integer"}), "1" * 10_000, "it is not JSON"),
        (ResponseFormat.of_schema({}), "[" * 100_000, "it is not JSON"),
        (ResponseFormat("regex", "[0-9]+"), "12a", "regular expression does not match"),
        (ResponseFormat.of_choices(["a"]), "ab", "none of the choices"),
    ],
)
def test_an_answer_that_does_not_fit_has_a_reason(form, text, words):
    value, problem = check(form, text)
    assert value is None
    assert words in problem
    assert "cut" not in problem


def test_an_answer_that_was_cut_says_so():
    _, problem = check(ResponseFormat.of_schema(REVIEW), '{"sentiment": "neu', "length")
    assert "was cut at generation.max_new_tokens" in problem
    assert check(ResponseFormat.of_schema(REVIEW), json.dumps(GOOD), "length") == (GOOD, None)
    assert check(ResponseFormat("grammar", 'start: "ab"'), "a", "length")[1]
