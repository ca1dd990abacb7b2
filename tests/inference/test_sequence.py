"""Answers that do not fit their form are tried again, in the same loop and with the same handle."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hfray.completion import Prompt
from hfray.engines.base import RequestError
from hfray.engines.fake import FakeEngine
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from hfray.response import ResponseFormat
from tests.schemas import DIFFERENT_PAIR, PAIR, REVIEW

PROMPTS = [Prompt(f"prompt {number}") for number in range(24)]
ROOM = GenerationParams(max_new_tokens=200, temperature=0)


@pytest.fixture
def loop():
    loop = EngineLoop(FakeEngine(capacity=4, tokens_per_step=5))
    yield loop
    loop.close()


def with_form(schema: dict, retries: int | None, params: GenerationParams = ROOM) -> GenerationParams:
    return dataclasses.replace(params, response=ResponseFormat.of_schema(schema, retries))


def test_without_tries_an_answer_that_does_not_fit_is_an_error_that_keeps_its_text(loop):
    completions = loop.generate(PROMPTS, with_form(DIFFERENT_PAIR, 0))
    failed = [c for c in completions if c.error is not None]
    assert 0 < len(failed) < len(PROMPTS)
    for completion in failed:
        assert "has non-unique elements" in completion.error
        assert (completion.finish_reason, completion.response, completion.num_attempts) == ("error", None, 1)
        assert completion.text in ("[1,1]", "[2,2]", "[1, 1]", "[2, 2]")
    assert loop.stats.failed_rows == len(failed)


def test_another_draw_may_fit(loop):
    completions = loop.generate(PROMPTS, with_form(DIFFERENT_PAIR, 9))
    assert all(c.error is None and sorted(c.response) == [1, 2] for c in completions)
    assert {c.num_attempts for c in completions} > {1, 2}
    assert (loop.stats.rows, loop.stats.failed_rows) == (len(PROMPTS), 0)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_text_of_a_try_depends_on_its_row_alone(loop, temperature):
    params = dataclasses.replace(with_form(DIFFERENT_PAIR, 9), temperature=temperature)
    together = loop.generate(PROMPTS, params)
    alone = [loop.generate([prompt], params)[0] for prompt in reversed(PROMPTS)][::-1]
    assert [(c.text, c.num_attempts) for c in together] == [(c.text, c.num_attempts) for c in alone]


def test_equal_greedy_prompts_share_all_tries_whichever_comes_first(loop):
    params = with_form(DIFFERENT_PAIR, 9)
    retried = next(c for c in loop.generate(PROMPTS, params) if c.num_attempts > 1)
    prompt = PROMPTS[[c.text for c in loop.generate(PROMPTS, params)].index(retried.text)]
    for sample in ("row 7", "row 1"):
        other = EngineLoop(FakeEngine())
        handles = [other.submit(prompt, params, sample=name, share=True) for name in (sample, "last")]
        first, second = [handle.result(timeout=60) for handle in handles]
        assert (first.text, first.num_attempts) == (second.text, second.num_attempts)
        assert first.text == loop.generate([prompt], params)[0].text
        other.close()


def test_an_answer_that_was_cut_gets_more_room(loop):
    short = dataclasses.replace(ROOM, max_new_tokens=40)
    cut = loop.generate(PROMPTS[:6], with_form(REVIEW, 0, short))
    assert all("was cut at generation.max_new_tokens" in c.error for c in cut)
    whole = loop.generate(PROMPTS[:6], with_form(REVIEW, 1, short))
    assert all(c.error is None and c.num_attempts == 2 for c in whole)
    greedy = loop.generate(PROMPTS[:6], with_form(REVIEW, 0))
    assert [c.text for c in whole] == [c.text for c in greedy]  # the same draw, only longer


def test_an_unchecked_answer_ends_where_it_is_cut(loop):
    """A client of the service sees the finish reason, as on other servers."""
    params = with_form(REVIEW, None, dataclasses.replace(ROOM, max_new_tokens=10))
    (completion,) = loop.generate(PROMPTS[:1], params)
    assert (completion.error, completion.finish_reason, completion.num_attempts) == (None, "length", 0)


def test_a_stream_is_not_tried_again(loop):
    params = with_form(DIFFERENT_PAIR, 9)
    failed = next(
        prompt
        for prompt, c in zip(PROMPTS, loop.generate(PROMPTS, with_form(DIFFERENT_PAIR, 0)), strict=True)
        if c.error is not None
    )
    handle = loop.submit(failed, params, stream=True)
    text = "".join(piece.text for piece in handle)
    assert text == handle.result().text
    assert handle.result().num_attempts == 1


def test_a_retry_that_the_engine_refuses_ends_with_the_engines_reason():
    class Refuses(FakeEngine):
        def add(self, request):
            if request.params.sampling:
                raise RequestError("greedy only")
            super().add(request)

    loop = EngineLoop(Refuses())
    completions = loop.generate(PROMPTS, with_form(DIFFERENT_PAIR, 1))
    assert {c.error for c in completions} == {None, "greedy only"}
    loop.close()


def test_cancelling_between_two_tries_frees_the_engine(loop):
    handles = [loop.submit(prompt, with_form(DIFFERENT_PAIR | {"minItems": 3}, 10)) for prompt in PROMPTS]
    for handle in handles:
        handle.cancel()
    (completion,) = loop.generate(PROMPTS[:1], with_form(PAIR, 0))
    assert completion.error is None
    assert loop.engine.num_unfinished == 0


def test_the_form_binds_after_the_thought_which_is_split_off(loop):
    form = dataclasses.replace(ResponseFormat.of_schema(REVIEW, 0), after_thought=True)
    completions = loop.generate(PROMPTS[:4], dataclasses.replace(ROOM, response=form))
    assert {(c.error, c.reasoning) for c in completions} == {(None, "The row is short.")}
    assert all(json.loads(c.text) == c.response for c in completions)


def test_a_form_that_cannot_be_compiled_fails_its_row_alone(loop):
    bad = dataclasses.replace(ROOM, response=ResponseFormat("regex", "(?=a)b"))
    first, second = loop.submit(PROMPTS[0], bad), loop.submit(PROMPTS[1], ROOM)
    assert "cannot be compiled" in first.result(timeout=60).error
    assert second.result(timeout=60).error is None


def test_an_engine_without_forms_refuses_by_name():
    class Plain(FakeEngine):
        prepare = FakeEngine.__mro__[1].prepare

    loop = EngineLoop(Plain())
    (completion,) = loop.generate(PROMPTS[:1], with_form(PAIR, 0))
    assert "response: this engine cannot hold answers to a schema" in completion.error
    loop.close()
