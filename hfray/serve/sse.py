"""Answers as server-sent events, token by token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import BaseModel

from hfray.errors import EngineDiedError
from hfray.inference.handle import Piece
from hfray.serve import answers, protocol
from hfray.serve.answers import dump
from hfray.serve.errors import ApiError, engine_died, error_body
from hfray.serve.request import Session

DONE = b"data: [DONE]\n\n"


async def stream_text(
    session: Session, header: answers.Header, body: protocol.CompletionRequest
) -> AsyncIterator[bytes]:
    sent: dict[int, int] = {}

    def parts(index: int, piece: Piece) -> list[Any]:
        reason = piece.completion.finish_reason if piece.completion else None
        offset = sent.get(index, 0)
        sent[index] = offset + len(piece.text)
        return [answers.text_chunk(header, index, piece.text, piece.tokens, reason, offset)]

    async for event in _stream(session, header, body, parts, TextCompletion, "text_completion"):
        yield event


async def stream_chat(session: Session, header: answers.Header, body: protocol.ChatRequest) -> AsyncIterator[bytes]:
    begun: set[int] = set()

    def parts(index: int, piece: Piece) -> list[Any]:
        chunks = []
        if index not in begun:
            begun.add(index)
            chunks.append(answers.chat_chunk(header, index, ChoiceDelta(role="assistant", content=""), []))
        if piece.text or piece.tokens:
            delta = ChoiceDelta(content=piece.text)
            chunks.append(answers.chat_chunk(header, index, delta, piece.tokens))
        if piece.completion is not None:
            reason = piece.completion.finish_reason
            chunks.append(answers.chat_chunk(header, index, ChoiceDelta(), [], reason))
        return chunks

    async for event in _stream(session, header, body, parts, ChatCompletionChunk, "chat.completion.chunk"):
        yield event


async def _stream(
    session: Session,
    header: answers.Header,
    body: protocol.GenerationRequest,
    parts: Callable[[int, Piece], list[Any]],
    kind: type[Any],
    name: str,
) -> AsyncIterator[bytes]:
    """Server-sent events of a request; an error is an event too, and then the last."""
    ended: dict[int, Any] = {}
    try:
        async for index, piece in session.pieces():
            if piece.completion is not None:
                ended[index] = piece.completion
                if piece.completion.error is not None:
                    yield _event(error_body(ApiError(400, piece.completion.error)))
                    return
            yield b"".join([_event(part) for part in parts(index, piece)])
    except EngineDiedError:
        yield _event(error_body(engine_died()))
        return
    if body.usage_in_stream:
        answered = answers.usage([ended[index] for index in sorted(ended)], body.samples)
        yield _event(answers.usage_chunk(kind, name, header, answered))
    yield DONE


async def stream_record(session: Session, fault: str | None, finished: Callable[[Any], Any]) -> AsyncIterator[bytes]:
    outcome = None
    try:
        async for _, piece in session.pieces() if fault is None else _nothing():
            if piece.text:
                yield _event({"text": piece.text})
            outcome = piece.completion or outcome
        yield _event({"row": finished(outcome)})
    except EngineDiedError:
        yield _event(error_body(engine_died()))
        return
    yield DONE


async def _nothing() -> AsyncIterator[tuple[int, Piece]]:
    for event in ():
        yield event


def _event(content: Any) -> bytes:
    return b"data: " + (dump(content) if isinstance(content, BaseModel) else orjson.dumps(content)) + b"\n\n"
