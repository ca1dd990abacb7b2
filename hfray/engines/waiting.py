"""Requests that an engine has not started yet: for those that hand a library no more than runs at once."""

from __future__ import annotations

from hfray.engines.base import Request


class WaitingRequests:
    """A queue in the order of arrival; near the end, those expected to be longest come first."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._expected = ExpectedLength()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Take a request in."""
        self._requests[request.id] = request

    def cancel(self, request_id: int) -> None:
        """Forget a request; unknown ids are ignored."""
        self._requests.pop(request_id, None)

    def take(self, count: int, ending: bool) -> list[Request]:
        """The next requests to start, `count` at most."""
        if count <= 0 or not self._requests:
            return []
        waiting = list(self._requests.values())
        if ending:
            waiting.sort(key=self._expected.of, reverse=True)
        for request in waiting[:count]:
            del self._requests[request.id]
        return waiting[:count]

    def observe(self, request: Request, generated_tokens: int) -> None:
        """Take in how long a completion became, to expect others by."""
        self._expected.observe(len(request.prompt_ids), generated_tokens)


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
