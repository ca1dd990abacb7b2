"""The interface of every engine: a continuous batcher of token sequences that runs step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hfray.errors import EngineDiedError, RequestError
from hfray.params import GenerationParams
from hfray.response import ResponseFormat

__all__ = ["Engine", "EngineDiedError", "GenerationParams", "Request", "RequestError", "StepOutput", "Tokenizer"]


NO_CHAT_TEMPLATE = "prompt.chat=true: the model has no chat template. Use prompt.chat=false."


class Tokenizer(Protocol):
    """The model's tokenizer. Safe to call from several threads."""

    bos_id: int | None

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def chat(self, messages: list[dict[str, str]]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to complete.

    Attributes:
        id: chosen by the caller, unique among the requests in the engine.
        prompt_ids: the prompt's token ids, at least one, fewer than the engine's context length.
        max_new_tokens: the maximum number of tokens to generate, already limited to the context.
        seed: seed of this request's random numbers; used only if `params.sampling`.
        may_wait: nobody needs each token at once, so an engine may hand over several together.

    If `params.response` is set, the engine lets the model write nothing else, and the request ends when the answer is
    complete.
    """

    id: int
    prompt_ids: list[int]
    max_new_tokens: int
    params: GenerationParams
    seed: int = 0
    may_wait: bool = False


@dataclass(slots=True)
class StepOutput:
    """What one step did for one request.

    Attributes:
        token_ids: the tokens generated in this step, in order, without the end-of-sequence token.
        finish_reason: "stop" (end of sequence) or "length" with the request's last output, else None.
        error: why this request failed (other requests run on), with its last output, else None.
        logprobs: if the request asks for them (`params.logprobs`), one entry per token of `token_ids`: the token's
            log-probability under the model, and (id, log-probability) of the likeliest tokens. Otherwise empty.
    """

    request_id: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    logprobs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)


class Engine(ABC):
    """A model on a device. Each step advances all running requests.

    Not thread-safe, `prepare` apart: only an `EngineLoop` calls it. Any exception from `step`, and any exception from `add` except
    RequestError, means that the engine is dead.

    Attributes:
        tokenizer: the model's tokenizer.
        context_length: the maximum number of prompt and completion tokens together; None: the model sets no limit.
        capacity: the maximum number of requests in one step; further requests wait.
        ending: set by the caller when no more requests will come; the engine then starts the longest first.
        num_running: requests that the last step advanced.
        prefix_tokens: prompt tokens found in the prefix cache, so not computed again.
        precision: what the loaded model computes in: fp32, bf16 or fp16. If its KV cache has another format, the words
            say so: `bf16, KV cache u8`.
        continues_prompt: whether the completion continues the prompt's text (false for a translation, for example).
        top_logprobs: whether the engine can report the likeliest tokens besides the generated token.
    """

    tokenizer: Tokenizer
    context_length: int | None
    capacity: int
    ending: bool = False
    num_running: int = 0
    prefix_tokens: int = 0
    precision: str
    continues_prompt: bool = True
    top_logprobs: bool = True

    def room(self, params: GenerationParams, prompt_tokens: int) -> int:
        """The number of tokens that may be generated after a prompt. Raises RequestError if there is no room."""
        return params.max_tokens_for(prompt_tokens, self.context_length)

    def prepare(self, form: ResponseFormat) -> None:
        """Compile a form of answers, once, before requests with it are added.

        The only method that other threads than the loop's call: compiling takes long, and the steps go on meanwhile.
        Raises RequestError if this engine cannot hold answers to the form.
        """
        raise RequestError(f"response: this engine cannot hold answers to a {form.kind}. Use another backend.")

    @abstractmethod
    def add(self, request: Request) -> None:
        """Add a request. Raises RequestError if it can never run."""

    @abstractmethod
    def step(self) -> list[StepOutput]:
        """Advance every running request, and start waiting requests if there is room."""

    @abstractmethod
    def cancel(self, request_id: int) -> None:
        """Remove a running or waiting request; it gets no further output. Unknown ids are ignored."""

    @property
    @abstractmethod
    def num_unfinished(self) -> int:
        """Number of requests that run or wait."""

    def close(self) -> None:  # noqa: B027  an engine with nothing to free need not override it
        """Free the device."""
