"""Requests that an engine has not started yet. Engines hand their library no more requests than run at once."""

from __future__ import annotations

from hfray.engines.base import Request


class WaitingRequests:
    """A queue in order of arrival. When no more requests will come, the longest expected ones start first."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._expected = ExpectedLength()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Add a request."""
        self._requests[request.id] = request

    def cancel(self, request_id: int) -> None:
        """Remove a request; unknown ids are ignored."""
        self._requests.pop(request_id, None)

    def take(self, count: int, ending: bool) -> list[Request]:
        """Remove and return the next requests to start, at most `count`."""
        if count <= 0 or not self._requests:
            return []
        waiting = list(self._requests.values())
        if ending:
            waiting.sort(key=self._expected.of, reverse=True)
        for request in waiting[:count]:
            del self._requests[request.id]
        return waiting[:count]

    def observe(self, request: Request, generated_tokens: int) -> None:
        """Learn from the length of a finished completion."""
        self._expected.observe(len(request.prompt_ids), generated_tokens)


SAMPLES = 32  # before so many completions, the estimate is the maximum length


class ExpectedLength:
    """A linear regression of generated tokens over prompt tokens, and the longest completion."""

    def __init__(self) -> None:
        self._count = self._longest = 0
        self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, prompt_tokens: int, generated_tokens: int) -> None:
        """Add a finished completion."""
        self._count += 1
        self._longest = max(self._longest, generated_tokens)
        self._x += prompt_tokens
        self._y += generated_tokens
        self._xx += prompt_tokens * prompt_tokens
        self._xy += prompt_tokens * generated_tokens

    @property
    def longest(self) -> int | None:
        """The tokens of the longest completion so far; None if there were too few."""
        return self._longest if self._count >= SAMPLES else None

    def of(self, request: Request) -> float:
        """The expected length of a completion in tokens, at most `max_new_tokens`."""
        spread = self._count * self._xx - self._x * self._x
        if self._count < SAMPLES or spread <= 0:
            return request.max_new_tokens
        slope = (self._count * self._xy - self._x * self._y) / spread
        guess = (self._y + slope * (self._count * len(request.prompt_ids) - self._x)) / self._count
        return min(max(guess, 0.0), request.max_new_tokens)
