"""Forms compiled once per engine, and one guide per request."""

from __future__ import annotations

import threading

import pytest

from hfray.engines import guides as module
from hfray.engines.base import Request
from hfray.engines.fakeanswers import byte_tokenizer, fitting_answer
from hfray.engines.guides import Guides, allowed_tokens
from hfray.errors import RequestError
from hfray.inference.validator import validator_of
from hfray.params import GenerationParams
from hfray.response import ResponseFormat
from tests.schemas import PAIR, REVIEW, TREE

FORM = ResponseFormat.of_choices(["ab", "ac"])


def request(number: int, form: ResponseFormat | None = FORM) -> Request:
    return Request(id=number, prompt_ids=[1], max_new_tokens=9, params=GenerationParams(response=form))


@pytest.fixture
def guides():
    return Guides(byte_tokenizer)


def test_each_request_walks_its_own_guide(guides):
    guides.prepare(FORM)
    assert not guides.advance(request(1), ord("a"))
    assert sorted(allowed_tokens(guides.guide(request(1)).compute_bitmask())) == [ord("b"), ord("c")]
    assert sorted(allowed_tokens(guides.guide(request(2)).compute_bitmask())) == [ord("a")]
    assert guides.advance(request(1), ord("b"))
    guides.forget(1)
    assert not guides.guide(request(1)).is_stopped()


def test_a_request_without_a_form_has_no_guide(guides):
    assert guides.guide(request(1, None)) is None
    assert not guides.advance(request(1, None), 5)


def test_a_form_is_compiled_once(guides, monkeypatch):
    compiled = []
    monkeypatch.setattr(Guides, "_compile", lambda self, form: compiled.append(form) or original(self, form))
    threads = [threading.Thread(target=guides.prepare, args=(FORM,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guides.guide(request(1))
    assert compiled == [FORM]


original = Guides._compile


def test_the_least_recently_used_forms_are_dropped(guides, monkeypatch):
    monkeypatch.setattr(module, "KEPT_FORMS", 2)
    for text in "abc":
        guides.prepare(ResponseFormat.of_choices([text]))
    assert len(guides._compiled) == 2
    guides.advance(request(1, ResponseFormat.of_choices(["a"])), ord("a"))  # compiled again


def test_a_token_that_the_form_forbids_is_an_error(guides):
    with pytest.raises(RequestError, match="cannot be held to its form"):
        guides.advance(request(1), ord("x"))


def test_what_cannot_be_compiled_is_an_error_of_the_request(guides):
    with pytest.raises(RequestError, match="the regex cannot be compiled"):
        guides.prepare(ResponseFormat("regex", "(?=a)b"))


@pytest.mark.parametrize(
    "form",
    [
        ResponseFormat.of_schema(REVIEW),
        ResponseFormat.of_schema(TREE),
        ResponseFormat.of_schema(PAIR),
        ResponseFormat.of_schema({"type": "object"}),
        ResponseFormat.of_schema({"type": "array", "items": {"type": "number"}, "minItems": 2}),
        ResponseFormat("regex", "[0-9]{3}-[a-z]+"),
        FORM,
    ],
)
def test_fake_answers_fit_are_short_and_repeat(guides, form):
    for number in range(40):
        answer = fitting_answer(guides.start(form), number * 7919, 400)
        assert validator_of(form).check(answer.decode(), "stop")[1] is None
        assert len(answer) < 200
        assert answer == fitting_answer(guides.start(form), number * 7919, 400)
    assert len(fitting_answer(guides.start(form), 1, 3)) <= 3
