"""How long a completion will be, guessed from those before it: so that the longest do not come last."""

from __future__ import annotations

from hfray.engines.base import Request

SAMPLES = 32  # completions seen before the guess is more than the most that is allowed


class ExpectedLength:
    """A straight line through (prompt tokens, generated tokens) of the completions so far."""

    def __init__(self) -> None:
        self._count = 0
        self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, prompt_tokens: int, generated_tokens: int) -> None:
        """Take in a finished completion."""
        self._count += 1
        self._x += prompt_tokens
        self._y += generated_tokens
        self._xx += prompt_tokens * prompt_tokens
        self._xy += prompt_tokens * generated_tokens

    def of(self, request: Request) -> float:
        """Tokens that a request's completion is expected to have, at most its `max_new_tokens`."""
        spread = self._count * self._xx - self._x * self._x
        if self._count < SAMPLES or spread <= 0:
            return request.max_new_tokens
        slope = (self._count * self._xy - self._x * self._y) / spread
        guess = (self._y + slope * (self._count * len(request.prompt_ids) - self._x)) / self._count
        return min(max(guess, 0.0), request.max_new_tokens)
