"""Answers as server-sent events, token by token. An error is an event too, and then it is the last event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

import orjson
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import BaseModel

from hfray.completion import Completion
from hfray.errors import EngineDiedError
from hfray.inference.handle import Piece
from hfray.serve import answers, protocol
from hfray.serve.errors import ApiError, cut_short, error_body
from hfray.serve.request import Session

DONE = b"data: [DONE]\n\n"


async def stream_text(
    session: Session, header: answers.Header, body: protocol.CompletionRequest
) -> AsyncIterator[bytes]:
    """The events of a streamed /v1/completions answer."""
    sent: dict[int, int] = {}  # characters sent, by choice

    def chunks(index: int, piece: Piece) -> Sequence[BaseModel]:
        reason = piece.completion.finish_reason if piece.completion else None
        offset = sent.get(index, 0)
        sent[index] = offset + len(piece.text)
        return [answers.text_chunk(header, index, piece.text, piece.tokens, reason, offset)]

    def last(completions: Sequence[Completion]) -> BaseModel:
        counts = answers.usage(completions, body.samples)
        return answers.usage_chunk(TextCompletion, "text_completion", header, counts)

    async for event in _stream(session, body, chunks, last):
        yield event


async def stream_chat(session: Session, header: answers.Header, body: protocol.ChatRequest) -> AsyncIterator[bytes]:
    """The events of a streamed /v1/chat/completions answer."""
    begun: set[int] = set()

    def chunks(index: int, piece: Piece) -> Sequence[BaseModel]:
        found = []
        if index not in begun:
            begun.add(index)
            found.append(answers.chat_chunk(header, index, ChoiceDelta(role="assistant", content=""), []))
        if piece.text or piece.tokens:
            found.append(answers.chat_chunk(header, index, ChoiceDelta(content=piece.text), piece.tokens))
        if piece.completion is not None:
            found.append(answers.chat_chunk(header, index, ChoiceDelta(), [], piece.completion.finish_reason))
        return found

    def last(completions: Sequence[Completion]) -> BaseModel:
        counts = answers.usage(completions, body.samples)
        return answers.usage_chunk(ChatCompletionChunk, "chat.completion.chunk", header, counts)

    async for event in _stream(session, body, chunks, last):
        yield event


async def stream_record(
    session: Session, fault: str | None, finished: Callable[[Completion | None], Mapping[str, object]]
) -> AsyncIterator[bytes]:
    """The events of a record: its text as it is generated, then its row. `fault`: why the record cannot run."""
    completion = None
    try:
        if fault is None:
            async for _, piece in session.pieces():
                if piece.text:
                    yield _event({"text": piece.text})
                completion = piece.completion or completion
    except EngineDiedError as error:
        yield _event(error_body(cut_short(error)))
        return
    yield _event({"row": finished(completion)})
    yield DONE


async def _stream(
    session: Session,
    body: protocol.GenerationRequest,
    chunks: Callable[[int, Piece], Sequence[BaseModel]],
    last: Callable[[Sequence[Completion]], BaseModel],
) -> AsyncIterator[bytes]:
    """The events of a request: its chunks as they arrive; then, if the client asked for it, the usage."""
    ended: dict[int, Completion] = {}
    try:
        async for index, piece in session.pieces():
            if piece.completion is not None:
                ended[index] = piece.completion
                if piece.completion.error is not None:
                    yield _event(error_body(ApiError(400, piece.completion.error)))
                    return
            if body.wants_logprobs is None:
                piece = replace(piece, tokens=[])
            yield b"".join([_event(chunk) for chunk in chunks(index, piece)])
    except EngineDiedError as error:
        yield _event(error_body(cut_short(error)))
        return
    if body.usage_in_stream:
        yield _event(last([ended[index] for index in sorted(ended)]))
    yield DONE


def _event(content: BaseModel | Mapping[str, object]) -> bytes:
    data = answers.dump(content) if isinstance(content, BaseModel) else orjson.dumps(content)
    return b"data: " + data + b"\n\n"
