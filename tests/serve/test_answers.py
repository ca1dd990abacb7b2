"""Completions as answers and chunks in OpenAI's format."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from hfray.completion import Completion
from hfray.serve import answers
from hfray.serve.protocol import ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "x"}]


class Letters:
    """A tokenizer with a token for each letter."""

    bos_id = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in token_ids)

    def chat(self, messages: list[dict[str, str]]) -> str:
        return messages[-1]["content"]


HEADER = answers.Header("id", 1, "model", Letters())


def made(text: str, prompt_tokens: int = 2) -> Completion:
    ids = [ord(letter) for letter in text]
    logprobs = [(-0.5, [(token, -0.5)]) for token in ids]
    return Completion(text, "stop", prompt_tokens, len(ids), None, ids, logprobs)


def text_request(**fields: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "x", **fields})


def chat_request(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({"messages": MESSAGES, **fields})


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}])
def test_no_log_probabilities_unless_asked_for(fields):
    """Engines may report zeros for every token."""
    assert answers.text_completion(HEADER, [made("ab")], text_request(**fields)).choices[0].logprobs is None
    assert answers.chat_completion(HEADER, [made("ab")], chat_request(**fields)).choices[0].logprobs is None


def test_log_probabilities_of_a_text():
    logprobs = answers.text_completion(HEADER, [made("ab")], text_request(logprobs=1)).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b"]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.top_logprobs == [{"a": -0.5}, {"b": -0.5}]
    assert logprobs.text_offset == [0, 1]


def test_log_probabilities_of_a_chat():
    body = chat_request(logprobs=True, top_logprobs=1)
    logprobs = answers.chat_completion(HEADER, [made("é\ufffd")], body).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.bytes for token in logprobs.content] == [[195, 169], None]
    assert [token.top_logprobs[0].token for token in logprobs.content] == ["é", "\ufffd"]


def test_usage_counts_a_prompt_once():
    counts = answers.usage([made("ab"), made("c"), made("d", 5), made("e", 5)], samples=2)
    assert (counts.prompt_tokens, counts.completion_tokens, counts.total_tokens) == (7, 5, 12)


def test_chunks_leave_out_what_is_not_set():
    chunk = answers.text_chunk(HEADER, 3, "ab", [], None)
    assert json.loads(answers.dump(chunk)) == {
        "id": "id",
        "created": 1,
        "model": "model",
        "object": "text_completion",
        "choices": [{"index": 3, "text": "ab", "finish_reason": None, "logprobs": None}],
    }
    part = json.loads(answers.dump(answers.chat_chunk(HEADER, 0, ChoiceDelta(content="a"), [])))
    assert part["choices"] == [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]


def test_the_offset_of_a_chunk_counts_the_text_before_it():
    chunk = answers.text_chunk(HEADER, 0, "cd", [(99, -1.0, []), (100, -1.0, [])], None, offset=2)
    assert chunk.choices[0].logprobs is not None
    assert chunk.choices[0].logprobs.text_offset == [2, 3]
