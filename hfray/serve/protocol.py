"""OpenAI's protocol: requests checked and turned into ours, completions turned into its answers.

Answers are the `openai` package's own types. It has none for requests but TypedDicts; those here say in one place what
this server takes, and their names say what of OpenAI's it does not.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Annotated, Any, Literal

from openai.types import Completion as TextCompletion
from openai.types import CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hfray.completion import Completion
from hfray.engines.base import GenerationParams, Tokenizer
from hfray.serve.request import Token

# Of no effect on the answer here.
IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}
IGNORED |= {"prompt_cache_options", "parallel_tool_calls", "verbosity"}
NEUTRAL = ("none", "auto", {"type": "text"}, ["text"])  # values that ask for nothing, of fields not supported
SAME_NAME = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos")
TOKEN_LIMIT = 1 << 30
COOLEST = 0.01  # below it, sampling is greedy but for rounding, and the division by it is not safe
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream brings besides text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What both kinds of requests have. What is left out is as in the server's settings (`generation.*`)."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=TOKEN_LIMIT)
    n: int | None = Field(default=None, ge=1, le=128)
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Not OpenAI's, but common among servers of its protocol:
    top_k: int | None = Field(default=None, ge=0, le=TOKEN_LIMIT)
    min_p: float | None = Field(default=None, ge=0, lt=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=2, allow_inf_nan=False)
    min_tokens: int | None = Field(default=None, ge=0, le=TOKEN_LIMIT)
    ignore_eos: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            key: value
            for key, value in values.items()
            if key in cls.model_fields or not (key in IGNORED or not value or value in NEUTRAL)
        }

    @property
    def samples(self) -> int:
        """Completions of each prompt."""
        return self.n or 1

    @property
    def usage_in_stream(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate."""
        return self.max_tokens

    @property
    def wants_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report with each; None reports no log-probabilities at all."""
        raise NotImplementedError

    def params(self, base: GenerationParams) -> GenerationParams:
        """The server's generation settings, with what the request asks for in their place.

        Without a seed of the request's own, samples are drawn anew each time.
        """
        wanted = {
            "max_new_tokens": self.token_limit,
            "min_new_tokens": self.min_tokens,
            "temperature": self.temperature,
            "stop_strings": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()) or None,
            "logprobs": self.wants_logprobs,
            "seed": random.getrandbits(62) if self.seed is None else self.seed & ((1 << 63) - 1),
        }
        wanted |= {name: getattr(self, name) for name in SAME_NAME}
        if self.temperature is not None:
            wanted["temperature"] = 0 if self.temperature < COOLEST else self.temperature
            base = dataclasses.replace(base, do_sample=None)
        return dataclasses.replace(base, **{key: value for key, value in wanted.items() if value is not None})


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def wants_logprobs(self) -> int | None:
        return self.logprobs


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation; text only."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=TOKEN_LIMIT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


# --- answers -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What every part of one answer repeats."""

    id: str
    created: int
    model: str
    tokenizer: Tokenizer

    def plain(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}


def usage(completions: list[Completion], samples: int) -> CompletionUsage:
    """Tokens of an answer; a prompt counts once, however many samples of it there are."""
    prompt = sum(completion.num_prompt_tokens for completion in completions[::samples])
    generated = sum(completion.num_generated_tokens for completion in completions)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


def text_completion(header: Header, completions: list[Completion], samples: int) -> TextCompletion:
    """The answer of /v1/completions."""
    choices = [
        CompletionChoice(
            index=index,
            text=completion.text,
            finish_reason=completion.finish_reason,
            logprobs=text_logprobs(header.tokenizer, tokens_of(completion)),
        )
        for index, completion in enumerate(completions)
    ]
    answered = usage(completions, samples)
    return TextCompletion(object="text_completion", choices=choices, usage=answered, **header.plain())


def chat_completion(header: Header, completions: list[Completion], samples: int) -> ChatCompletion:
    """The answer of /v1/chat/completions."""
    choices = []
    for index, completion in enumerate(completions):
        logprobs = chat_logprobs(header.tokenizer, tokens_of(completion))
        choices.append(
            Choice(
                index=index,
                message=ChatCompletionMessage(role="assistant", content=completion.text),
                finish_reason=completion.finish_reason,
                logprobs=ChoiceLogprobs(content=logprobs) if logprobs else None,
            )
        )
    answered = usage(completions, samples)
    return ChatCompletion(object="chat.completion", choices=choices, usage=answered, **header.plain())


def text_chunk(
    header: Header, index: int, text: str, tokens: list[Token], finish_reason: str | None, offset: int = 0
) -> TextCompletion:
    """A part of a streamed /v1/completions answer; `offset`: the characters before it."""
    choice = CompletionChoice.construct(  # its type wants a finish reason in every part, which OpenAI does not send
        index=index,
        text=text,
        finish_reason=finish_reason,
        logprobs=text_logprobs(header.tokenizer, tokens, offset),
    )
    return TextCompletion.construct(object="text_completion", choices=[choice], **header.plain())


def chat_chunk(
    header: Header, index: int, delta: ChoiceDelta, tokens: list[Token], finish_reason: Any = None
) -> ChatCompletionChunk:
    """A part of a streamed /v1/chat/completions answer."""
    logprobs = chat_logprobs(header.tokenizer, tokens)
    choice = ChunkChoice.construct(index=index, delta=delta, finish_reason=finish_reason)
    if logprobs:
        choice.logprobs = ChoiceLogprobs.construct(content=logprobs)
    return ChatCompletionChunk.construct(object="chat.completion.chunk", choices=[choice], **header.plain())


def usage_chunk(kind: type[Any], name: str, header: Header, answered: CompletionUsage) -> Any:
    """The last part of a stream whose client asked for the usage."""
    return kind.construct(object=name, choices=[], usage=answered, **header.plain())


def tokens_of(completion: Completion) -> list[Token]:
    """The tokens of a completion with their log-probabilities; empty where the engine gave none."""
    return [(token, *logprob) for token, logprob in zip(completion.token_ids, completion.logprobs, strict=False)]


def text_logprobs(tokenizer: Tokenizer, tokens: list[Token], offset: int = 0) -> Logprobs | None:
    """Log-probabilities as /v1/completions gives them."""
    if not tokens:
        return None
    texts = [tokenizer.decode([token]) for token, _, _ in tokens]
    offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
    likeliest = [{tokenizer.decode([token]): value for token, value in top} for _, _, top in tokens]
    values = [value for _, value, _ in tokens]
    return Logprobs(tokens=texts, token_logprobs=values, top_logprobs=likeliest, text_offset=offsets)


def chat_logprobs(tokenizer: Tokenizer, tokens: list[Token]) -> list[ChatCompletionTokenLogprob]:
    """Log-probabilities as /v1/chat/completions gives them."""

    def named(token: int, value: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        torn = "\ufffd" in text  # a piece of a character: its bytes cannot be told from the text
        return {"token": text, "logprob": value, "bytes": None if torn else list(text.encode())}

    return [
        ChatCompletionTokenLogprob(**named(token, value), top_logprobs=[TopLogprob(**named(*pair)) for pair in top])
        for token, value, top in tokens
    ]
