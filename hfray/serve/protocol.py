"""OpenAI's requests: parsed, checked and converted to generation parameters.

The `openai` package has typed dictionaries for requests, which check nothing. The classes here state in one place what
this server accepts, and their error messages name the OpenAI fields that it does not support.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hfray.params import GenerationParams
from hfray.response import ResponseFormat
from hfray.serve.forms import AnswerFormat, StructuredOutputs, form_of

# Fields that do not change the answer of this server.
IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "verbosity",
}
# Values of unsupported fields that change nothing. Empty values change nothing either, except those in NOT_NEUTRAL.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "tool_choice": ("none", "auto"),
    "truncation": ("auto", "disabled"),
}
NOT_NEUTRAL = {"add_generation_prompt", "skip_special_tokens", "spaces_between_special_tokens"}  # false asks for change
MAX_DEPTH = 64  # of nested JSON in a record; the writers of JSON and Parquet fail beyond a few hundred
SAME_NAME = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos")
TOKEN_LIMIT = 1 << 30
MIN_TEMPERATURE = 0.01  # below it, sampling equals greedy search, and the division by the temperature can overflow
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream contains besides text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """The fields that both kinds of requests share. A missing field takes the server's setting (`generation.*`)."""

    model_config = ConfigDict(strict=True, extra="forbid")
    LIKELIEST: ClassVar[str]  # the field that asks for the likeliest tokens

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
    # Not in OpenAI's protocol, but common among servers that speak it:
    top_k: int | None = Field(default=None, ge=-1, le=TOKEN_LIMIT)
    min_p: float | None = Field(default=None, ge=0, lt=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=2, allow_inf_nan=False)
    min_tokens: int | None = Field(default=None, ge=0, le=TOKEN_LIMIT)
    ignore_eos: bool | None = None
    response_format: AnswerFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_fields(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if key in cls.model_fields or not _is_neutral(key, value)}

    @model_validator(mode="after")
    def _one_form(self) -> GenerationRequest:
        if self.structured_outputs is not None and form_of(self.response_format, None) is not None:
            raise ValueError("response_format and structured_outputs are both given: send one of them")
        return self

    @property
    def samples(self) -> int:
        """Completions of each prompt."""
        return self.n or 1

    @property
    def usage_in_stream(self) -> bool:
        """Whether the stream ends with the token usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def form(self) -> ResponseFormat | None:
        """The form that the answer must have. The server's own setting is for records only."""
        return form_of(self.response_format, self.structured_outputs)

    @property
    def token_limit(self) -> int | None:
        """The largest number of tokens to generate."""
        return self.max_tokens

    @property
    def wants_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report with each token. None reports no log-probabilities at all."""
        raise NotImplementedError

    def default_limit(self, context_length: int | None) -> int | None:
        """The token limit of a request that names none; None for the server's setting."""
        return None

    def params(self, base: GenerationParams, context_length: int | None) -> GenerationParams:
        """The server's generation settings, overridden by the fields of the request.

        A request without a seed draws new random samples each time. Log-probabilities come only from the request.
        """
        limit = self.default_limit(context_length) if self.token_limit is None else self.token_limit
        wanted: dict[str, object] = {
            "max_new_tokens": limit,
            "min_new_tokens": self.min_tokens,
            "temperature": self.temperature,
            "stop_strings": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()) or None,
            "seed": random.getrandbits(62) if self.seed is None else self.seed & ((1 << 63) - 1),
        }
        wanted |= {name: getattr(self, name) for name in SAME_NAME}
        if self.top_k == -1:  # other servers' word for no limit
            wanted["top_k"] = 0
        if self.temperature is not None:
            wanted["temperature"] = 0 if self.temperature < MIN_TEMPERATURE else self.temperature
            base = dataclasses.replace(base, do_sample=None)
        base = dataclasses.replace(base, logprobs=self.wants_logprobs, response=self.form)
        return dataclasses.replace(base, **{key: value for key, value in wanted.items() if value is not None})


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    LIKELIEST = "logprobs"

    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | Literal[False] | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def wants_logprobs(self) -> int | None:
        return None if self.logprobs is False else self.logprobs


class TextPart(BaseModel):
    """A text part of a message."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation; only text is supported."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported_parts(cls, values: object) -> object:
        for name in ("tool_calls", "function_call", "audio"):
            if isinstance(values, Mapping) and values.get(name):
                raise ValueError(f"{name} is not supported: the prompt would not contain it. Send the message as text.")
        return values

    def plain(self) -> dict[str, str]:
        """The message as a chat template takes it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    LIKELIEST = "top_logprobs"

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=TOKEN_LIMIT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _top_logprobs_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def default_limit(self, context_length: int | None) -> int | None:
        """A chat without a limit may fill the context, as on other servers."""
        return context_length

    @property
    def wants_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def nesting(value: object) -> int:
    """How deep a JSON value is nested; 0 for a scalar. Does not recurse, so that no depth can break it."""
    depth, level = -1, [value]
    while level:
        depth += 1
        level = [child for item in level for child in _children(item)]
    return depth


def _children(value: object) -> Iterable[object]:
    """The values inside a JSON container; an empty container counts as one level."""
    if isinstance(value, Mapping):
        return value.values() or (None,)
    return (value or (None,)) if isinstance(value, list) else ()


def _is_neutral(key: str, value: object) -> bool:
    """Whether an unsupported field has a value that changes nothing."""
    if key in IGNORED or value is None:
        return True
    return value in NEUTRAL.get(key, ()) or (not value and key not in NOT_NEUTRAL)
