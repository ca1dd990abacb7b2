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
from hfray.serve import protocol
from hfray.serve.errors import died, error_body
from hfray.serve.request import Piece, Session

DONE = b"data: [DONE]\n\n"


async def stream_text(
    session: Session, header: protocol.Header, body: protocol.CompletionRequest
) -> AsyncIterator[bytes]:
    sent: dict[int, int] = {}

    def parts(piece: Piece) -> list[Any]:
        reason = piece.outcome.finish_reason if piece.outcome else None
        offset = sent.get(piece.index, 0)
        sent[piece.index] = offset + len(piece.text)
        return [protocol.text_chunk(header, piece.index, piece.text, piece.tokens, reason, offset)]

    async for event in _stream(session, header, body, parts, TextCompletion, "text_completion"):
        yield event


async def stream_chat(session: Session, header: protocol.Header, body: protocol.ChatRequest) -> AsyncIterator[bytes]:
    begun: set[int] = set()

    def parts(piece: Piece) -> list[Any]:
        chunks = []
        if piece.index not in begun:
            begun.add(piece.index)
            chunks.append(protocol.chat_chunk(header, piece.index, ChoiceDelta(role="assistant", content=""), []))
        if piece.text or piece.tokens:
            delta = ChoiceDelta(content=piece.text)
            chunks.append(protocol.chat_chunk(header, piece.index, delta, piece.tokens))
        if piece.outcome is not None:
            reason = piece.outcome.finish_reason
            chunks.append(protocol.chat_chunk(header, piece.index, ChoiceDelta(), [], reason))
        return chunks

    async for event in _stream(session, header, body, parts, ChatCompletionChunk, "chat.completion.chunk"):
        yield event


async def _stream(
    session: Session,
    header: protocol.Header,
    body: protocol.GenerationRequest,
    parts: Callable[[Piece], list[Any]],
    kind: type[Any],
    name: str,
) -> AsyncIterator[bytes]:
    """Server-sent events of a request; an error is an event too, and then the last."""
    ended: dict[int, Any] = {}
    try:
        async for piece in session.pieces():
            if piece.outcome is not None:
                ended[piece.index] = piece.outcome
                if piece.outcome.error is not None:
                    yield _event(error_body(400, piece.outcome.error))
                    return
            yield b"".join([_event(part) for part in parts(piece)])
    except EngineDiedError:
        error = died()
        yield _event(error_body(error.status_code, error.detail, code=error.code))
        return
    if body.usage_in_stream:
        answered = protocol.usage([ended[index] for index in sorted(ended)], body.samples)
        yield _event(protocol.usage_chunk(kind, name, header, answered))
    yield DONE


async def stream_record(session: Session, fault: str | None, finished: Callable[[Any], Any]) -> AsyncIterator[bytes]:
    outcome = None
    try:
        async for piece in session.pieces() if fault is None else _nothing():
            if piece.text:
                yield _event({"text": piece.text})
            outcome = piece.outcome or outcome
        yield _event({"row": finished(outcome)})
    except EngineDiedError:
        error = died()
        yield _event(error_body(error.status_code, error.detail, code=error.code))
        return
    yield DONE


async def _nothing() -> AsyncIterator[Piece]:
    for piece in ():
        yield piece


def _event(content: Any) -> bytes:
    return b"data: " + (dump(content) if isinstance(content, BaseModel) else orjson.dumps(content)) + b"\n\n"


def dump(content: BaseModel) -> bytes:
    """A type of the openai package as JSON, without the fields that do not apply."""
    return content.model_dump_json(exclude_unset=True, warnings=False).encode()
