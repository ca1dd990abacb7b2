"""The prompt that an engine loop takes, and the completion that it returns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for the engine; the text of a chat prompt already contains its special tokens."""

    text: str
    special_tokens_in_text: bool = False


@dataclass(slots=True)
class Completion:
    """The answer to a prompt: text and finish reason ("stop", "length"), or an error ("error").

    Attributes:
        response: the checked answer as a JSON value, if the answer had to have a form. An answer that does not fit is
            an error that keeps its text.
        reasoning: the thought of a reasoning model, if it was split from the text.
        num_attempts: how often the engine tried; 0 if the answer needed no form.
    """

    text: str | None = None
    finish_reason: str = "error"
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    error: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)
    response: Any = None
    reasoning: str | None = None
    num_attempts: int = 0

    def without_tokens(self) -> Completion:
        """A small copy, without token ids and log-probabilities."""
        return replace(self, token_ids=[], logprobs=[])
