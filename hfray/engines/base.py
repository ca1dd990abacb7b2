"""What every engine is: a continuous batcher of token sequences, one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hfray.errors import EngineDiedError, RequestError
from hfray.params import GenerationParams

__all__ = ["Engine", "EngineDiedError", "GenerationParams", "Request", "RequestError", "StepOutput", "Tokenizer"]


class Tokenizer(Protocol):
    """Text to token ids and back, as the model was trained with; safe to call from several threads."""

    bos_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def chat(self, messages: list[dict[str, str]]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to complete.

    Attributes:
        id: chosen by the caller, unique among the requests in the engine.
        prompt_ids: the prompt's token ids, at least one, fewer than the engine's context length.
        max_new_tokens: most tokens to generate, already bounded by the context.
        seed: seed of this request's own random numbers; used only where `params.sampling`.
    """

    id: int
    prompt_ids: list[int]
    max_new_tokens: int
    params: GenerationParams
    seed: int = 0


@dataclass(slots=True)
class StepOutput:
    """What one step did for one request.

    Attributes:
        token_ids: the tokens generated in this step, in order; the end-of-sequence token is not among them.
        finish_reason: "stop" (end of sequence) or "length" with the request's last output, else None.
        error: why this request alone failed, with its last output, else None.
        logprobs: per token of `token_ids`: its log-probability, and the likeliest tokens' (id, log-probability).
    """

    request_id: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    logprobs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)


class Engine(ABC):
    """A model on a device, advancing all its running requests a token at a time.

    Not safe to call from two threads at once: `EngineLoop` is the one caller. Any exception out of `add` other than
    RequestError, or out of `step`, means that the engine is dead.

    Attributes:
        tokenizer: the model's.
        context_length: most tokens of prompt and completion together, or None where the model sets no bound.
        capacity: how many requests run in one step at most; more may be added, and wait.
        ending: set by the caller once no more requests will come: the engine then starts the longest first.
        num_running: requests that the last step advanced.
        prefix_tokens: prompt tokens that were found in the prefix cache, and not computed again.
        continues_prompt: whether a completion's text goes on where the prompt's ends (not so for a translation).
        top_logprobs: whether log-probabilities include the likeliest tokens, not only the generated one.
    """

    tokenizer: Tokenizer
    context_length: int | None
    capacity: int
    ending: bool = False
    num_running: int = 0
    prefix_tokens: int = 0
    continues_prompt: bool = True
    top_logprobs: bool = True

    def room(self, params: GenerationParams, prompt_tokens: int) -> int:
        """How many tokens may be generated for a prompt of so many; raises RequestError where there can be none."""
        return params.max_tokens_for(prompt_tokens, self.context_length)

    @abstractmethod
    def add(self, request: Request) -> None:
        """Take a request in; raises RequestError where it can never run."""

    @abstractmethod
    def step(self) -> list[StepOutput]:
        """Advance every running request, and start waiting ones where there is room."""

    @abstractmethod
    def cancel(self, request_id: int) -> None:
        """Forget a request, running or waiting; unknown ids are ignored. No output for it follows."""

    @property
    @abstractmethod
    def num_unfinished(self) -> int:
        """Requests taken in and not yet finished or cancelled, running or waiting."""

    def close(self) -> None:  # noqa: B027  an engine with nothing to free need not say so
        """Free the device."""
