"""Completions as OpenAI's answers, whole or in chunks. The answers are the `openai` package's own types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, TypeVar, cast

from openai.types import Completion as TextCompletion
from openai.types import CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs
from pydantic import BaseModel

from hfray.completion import Completion
from hfray.engines.base import Tokenizer
from hfray.inference.handle import Token
from hfray.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest

FinishReason = Literal["stop", "length"]
Chunk = TypeVar("Chunk", TextCompletion, ChatCompletionChunk)


class HeaderFields(TypedDict):
    """The fields that every chunk of an answer repeats."""

    id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class Header:
    """The fields that every chunk of an answer repeats, and the tokenizer that names its tokens."""

    id: str
    created: int
    model: str
    tokenizer: Tokenizer

    def plain(self) -> HeaderFields:
        """The fields as keyword arguments."""
        return {"id": self.id, "created": self.created, "model": self.model}


def dump(content: BaseModel) -> bytes:
    """A type of the openai package as JSON, without the fields that are not set."""
    return content.model_dump_json(exclude_unset=True, warnings=False).encode()


def usage(completions: Sequence[Completion], samples: int) -> CompletionUsage:
    """Token counts of an answer. A prompt counts once, independent of the number of samples."""
    prompt = sum(completion.num_prompt_tokens for completion in completions[::samples])
    generated = sum(completion.num_generated_tokens for completion in completions)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


def text_completion(header: Header, completions: Sequence[Completion], body: CompletionRequest) -> TextCompletion:
    """The answer of /v1/completions."""
    choices = [
        CompletionChoice(
            index=index,
            text=completion.text or "",
            finish_reason=cast(FinishReason, completion.finish_reason),
            logprobs=text_logprobs(header.tokenizer, tokens_of(completion, body)),
        )
        for index, completion in enumerate(completions)
    ]
    counts = usage(completions, body.samples)
    return TextCompletion(object="text_completion", choices=choices, usage=counts, **header.plain())


def chat_completion(header: Header, completions: Sequence[Completion], body: ChatRequest) -> ChatCompletion:
    """The answer of /v1/chat/completions."""
    choices = []
    for index, completion in enumerate(completions):
        logprobs = chat_logprobs(header.tokenizer, tokens_of(completion, body))
        choices.append(
            Choice(
                index=index,
                message=ChatCompletionMessage(role="assistant", content=completion.text),
                finish_reason=cast(FinishReason, completion.finish_reason),
                logprobs=ChoiceLogprobs(content=logprobs) if logprobs else None,
            )
        )
    counts = usage(completions, body.samples)
    return ChatCompletion(object="chat.completion", choices=choices, usage=counts, **header.plain())


def text_chunk(
    header: Header, index: int, text: str, tokens: Sequence[Token], finish_reason: str | None, offset: int = 0
) -> TextCompletion:
    """A chunk of a streamed /v1/completions answer; `offset` is the number of characters sent before it."""
    # `construct` skips validation: the type demands a finish reason in every chunk, and OpenAI sends one at the end.
    choice = CompletionChoice.construct(
        index=index,
        text=text,
        finish_reason=finish_reason,
        logprobs=text_logprobs(header.tokenizer, tokens, offset),
    )
    return TextCompletion.construct(object="text_completion", choices=[choice], **header.plain())


def chat_chunk(
    header: Header, index: int, delta: ChoiceDelta, tokens: Sequence[Token], finish_reason: str | None = None
) -> ChatCompletionChunk:
    """A chunk of a streamed /v1/chat/completions answer."""
    logprobs = chat_logprobs(header.tokenizer, tokens)
    choice = ChunkChoice.construct(index=index, delta=delta, finish_reason=finish_reason)
    if logprobs:
        choice.logprobs = ChunkLogprobs.construct(content=logprobs)
    return ChatCompletionChunk.construct(object="chat.completion.chunk", choices=[choice], **header.plain())


def usage_chunk(kind: type[Chunk], name: str, header: Header, counts: CompletionUsage) -> Chunk:
    """The last chunk of a stream, for a client that asked for the usage."""
    return kind.construct(object=name, choices=[], usage=counts, **header.plain())


def tokens_of(completion: Completion, body: GenerationRequest) -> list[Token]:
    """The tokens of a completion with their log-probabilities; empty if the request does not ask for them."""
    if body.wants_logprobs is None:
        return []
    return [(token, *logprob) for token, logprob in zip(completion.token_ids, completion.logprobs, strict=False)]


def text_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token], offset: int = 0) -> Logprobs | None:
    """Log-probabilities in the form of /v1/completions."""
    if not tokens:
        return None
    texts = [tokenizer.decode([token]) for token, _, _ in tokens]
    offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
    likeliest = [{tokenizer.decode([token]): value for token, value in top} for _, _, top in tokens]
    values = [value for _, value, _ in tokens]
    return Logprobs(tokens=texts, token_logprobs=values, top_logprobs=likeliest, text_offset=offsets)


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[ChatCompletionTokenLogprob]:
    """Log-probabilities in the form of /v1/chat/completions."""
    return [
        ChatCompletionTokenLogprob(
            token=tokenizer.decode([token]),
            logprob=value,
            bytes=_utf8(tokenizer.decode([token])),
            top_logprobs=[
                TopLogprob(token=tokenizer.decode([other]), logprob=likely, bytes=_utf8(tokenizer.decode([other])))
                for other, likely in top
            ],
        )
        for token, value, top in tokens
    ]


def _utf8(text: str) -> list[int] | None:
    """The bytes of a token; None for a part of a character, because its text does not show its bytes."""
    return None if "\ufffd" in text else list(text.encode())
