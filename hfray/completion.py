"""The prompt that an engine loop takes, and the completion that it returns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for the engine; the text of a chat prompt already contains its special tokens."""

    text: str
    special_tokens_in_text: bool = False


@dataclass(slots=True)
class Completion:
    """The answer to a prompt: text and finish reason ("stop", "length"), or an error ("error")."""

    text: str | None = None
    finish_reason: str = "error"
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    error: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)

    def without_tokens(self) -> Completion:
        """A small copy, without token ids and log-probabilities."""
        return Completion(self.text, self.finish_reason, self.num_prompt_tokens, self.num_generated_tokens, self.error)
