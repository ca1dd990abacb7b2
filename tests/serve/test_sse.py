"""Streams as server-sent events, with a prepared session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hfray.completion import Completion
from hfray.errors import EngineDiedError
from hfray.inference.handle import Piece
from hfray.serve.errors import ServerStoppedError
from hfray.serve.protocol import ChatRequest, CompletionRequest
from hfray.serve.sse import stream_chat, stream_record, stream_text
from tests.serve.test_answers import HEADER

MESSAGES = [{"role": "user", "content": "x"}]
TOKENS = [(97, -0.5, [(97, -0.5)])]


class Session:
    """Yields prepared pieces, then an error if there is one."""

    def __init__(self, *pieces: tuple[int, Piece], error: Exception | None = None) -> None:
        self._pieces, self._error = pieces, error

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        for piece in self._pieces:
            yield piece
        if self._error is not None:
            raise self._error


def end(text: str = "", error: str | None = None) -> Piece:
    return Piece(text, [], Completion("ab", "stop" if error is None else "error", 3, 2, error))


def read(stream: AsyncIterator[bytes]) -> list[Any]:
    async def collect() -> list[Any]:
        text = b"".join([event async for event in stream]).decode()
        assert text.endswith("\n\n")
        lines = [line.removeprefix("data: ") for line in text.strip().split("\n\n")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    return asyncio.run(collect())


def text_events(session: Any, **fields: Any) -> list[Any]:
    return read(stream_text(session, HEADER, CompletionRequest.model_validate({"prompt": "x", **fields})))


def chat_events(session: Any, **fields: Any) -> list[Any]:
    return read(stream_chat(session, HEADER, ChatRequest.model_validate({"messages": MESSAGES, **fields})))


def test_text():
    events = text_events(Session((0, Piece("a")), (1, Piece("c")), (0, end("b")), (1, end())))
    assert events.pop() == "[DONE]"
    choices = [event["choices"][0] for event in events]
    assert [(c["index"], c["text"], c["finish_reason"]) for c in choices] == [
        (0, "a", None),
        (1, "c", None),
        (0, "b", "stop"),
        (1, "", "stop"),
    ]


def test_chat_begins_with_the_role_and_ends_with_the_reason():
    events = chat_events(Session((0, Piece("a")), (0, end("b"))))
    assert events.pop() == "[DONE]"
    choices = [event["choices"][0] for event in events]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


@pytest.mark.parametrize("stream", [text_events, chat_events])
def test_usage_only_if_asked_for(stream):
    session = Session((0, end("ab")))
    assert all("usage" not in event for event in stream(session)[:-1])
    last = stream(session, stream_options={"include_usage": True})[-2]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_log_probabilities_only_if_asked_for():
    session = Session((0, Piece("a", TOKENS)), (0, end()))
    assert all(event["choices"][0]["logprobs"] is None for event in text_events(session)[:-1])
    assert text_events(session, logprobs=1)[0]["choices"][0]["logprobs"]["tokens"] == ["a"]
    assert all("logprobs" not in event["choices"][0] for event in chat_events(session)[:-1])
    content = chat_events(session, logprobs=True)[1]["choices"][0]["logprobs"]["content"]
    assert content[0]["token"] == "a"


@pytest.mark.parametrize(
    ("error", "code"), [(EngineDiedError("dead"), "engine_died"), (ServerStoppedError("stop"), "stopped")]
)
def test_an_error_is_the_last_event(error, code):
    record = stream_record(Session((0, Piece("a")), error=error), None, lambda _: {})  # type: ignore
    for events in (
        text_events(Session((0, Piece("a")), error=error)),
        chat_events(Session((0, Piece("a")), error=error)),
        read(record),
    ):
        assert len(events) > 1
        assert events[-1]["error"]["code"] == code


def test_a_failed_completion_ends_the_stream():
    events = text_events(Session((0, Piece("a")), (0, end(error="told to fail"))))
    assert events[-1]["error"]["message"] == "told to fail"


def test_record():
    def finished(completion: Completion | None) -> dict[str, object]:
        return {"text": completion.text if completion else None}

    session: Any = Session((0, Piece("a")), (0, end("b")))
    assert read(stream_record(session, None, finished)) == [
        {"text": "a"},
        {"text": "b"},
        {"row": {"text": "ab"}},
        "[DONE]",
    ]
    assert read(stream_record(session, "too long", finished)) == [{"row": {"text": None}}, "[DONE]"]
