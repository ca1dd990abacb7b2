"""OpenAI's requests as generation parameters: defaults, neutral values, refusals."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hfray.params import GenerationParams
from hfray.serve.protocol import ChatRequest, CompletionRequest, Message, nesting

BASE = GenerationParams(max_new_tokens=128, temperature=0.5, top_p=0.9)
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def completion(**fields: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "x", **fields})


def chat(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({**HELLO, **fields})


def test_missing_fields_take_the_servers_settings():
    params = completion().params(BASE, 400)
    assert (params.max_new_tokens, params.temperature, params.top_p) == (128, 0.5, 0.9)


def test_fields_of_the_request_override_the_servers_settings():
    params = completion(max_tokens=3, temperature=0, stop="end", seed=-1, min_tokens=2).params(BASE, 400)
    assert (params.max_new_tokens, params.temperature, params.stop_strings) == (3, 0, ("end",))
    assert (params.seed, params.min_new_tokens) == ((1 << 63) - 1, 2)
    assert not params.sampling


def test_a_tiny_temperature_is_greedy():
    assert completion(temperature=1e-9).params(BASE, 400).temperature == 0


def test_requests_without_a_seed_draw_new_samples():
    assert completion().params(BASE, 400).seed != completion().params(BASE, 400).seed


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1},
        {"top_k": -1},
        {"add_generation_prompt": True},
        {"skip_special_tokens": True},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"echo": False, "logit_bias": {}, "suffix": None, "user": "me", "metadata": {"a": "b"}},
    ],
)
@pytest.mark.parametrize("make", [completion, chat])
def test_neutral_values_are_accepted(make, fields):
    assert make(seed=1, **fields).params(BASE, 400).sampling == make(seed=1).params(BASE, 400).sampling


def test_top_k_of_minus_one_is_no_limit():
    assert completion(top_k=-1).params(BASE, 400).top_k == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 2},
        {"top_k": -2},
        {"add_generation_prompt": False},
        {"skip_special_tokens": False},
        {"tool_choice": "required"},
        {"user": "me", "echo": True},
        {"response_format": {"type": "xml"}},
    ],
)
@pytest.mark.parametrize("make", [completion, chat])
def test_unsupported_fields_are_refused_by_name(make, fields):
    with pytest.raises(ValidationError, match=list(fields)[-1]):
        make(**fields)


def test_a_chat_without_a_limit_fills_the_context():
    assert chat().params(BASE, 400).max_new_tokens == 400
    assert chat().params(BASE, None).max_new_tokens == 128
    assert chat(max_tokens=7).params(BASE, 400).max_new_tokens == 7
    assert chat(max_tokens=7, max_completion_tokens=9).params(BASE, 400).max_new_tokens == 9


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (completion(), None),
        (completion(logprobs=False), None),
        (completion(logprobs=0), 0),
        (completion(logprobs=3), 3),
        (chat(), None),
        (chat(logprobs=False), None),
        (chat(logprobs=True), 0),
        (chat(logprobs=True, top_logprobs=5), 5),
    ],
)
def test_log_probabilities_come_only_when_asked_for(request_, wanted):
    assert request_.wants_logprobs == wanted
    base = GenerationParams(logprobs=2)
    assert request_.params(base, 400).logprobs == wanted


def test_top_logprobs_without_logprobs_is_refused():
    with pytest.raises(ValidationError, match="logprobs=true"):
        chat(top_logprobs=5)
    assert chat(top_logprobs=0).wants_logprobs is None


def test_messages_get_the_form_that_chat_templates_expect():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Message.model_validate({"role": "developer", "content": parts}).plain() == {
        "role": "system",
        "content": "ab",
    }
    assert Message.model_validate({"role": "assistant", "content": None, "tool_calls": []}).plain()["content"] == ""


@pytest.mark.parametrize("name", ["tool_calls", "function_call", "audio"])
def test_message_fields_that_would_be_lost_are_refused(name):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, name: [call]}
    with pytest.raises(ValidationError, match=f"{name} is not supported"):
        ChatRequest.model_validate({"messages": [*HELLO["messages"], message]})


def test_nesting():
    assert [nesting(value) for value in (1, {}, [1], {"a": [{"b": "text"}]})] == [0, 1, 1, 3]
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    assert nesting(deep) == 5000
