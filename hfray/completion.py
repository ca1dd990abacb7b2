"""A prompt on its way into an engine loop, and the completion that comes out."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the engine; a chat prompt carries its special tokens in its text already."""

    text: str
    special_tokens_in_text: bool = False


@dataclass(slots=True)
class Completion:
    """What a prompt became: text and finish reason ("stop", "length"), or an error ("error")."""

    text: str | None = None
    finish_reason: str = "error"
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    error: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)

    def without_tokens(self) -> Completion:
        """A copy that is cheap to keep: no token ids, no log-probabilities."""
        return Completion(self.text, self.finish_reason, self.num_prompt_tokens, self.num_generated_tokens, self.error)
