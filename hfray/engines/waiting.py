"""Requests that an engine has not started yet: for those that hand a library no more than runs at once."""

from __future__ import annotations

from hfray.engines.base import Request
from hfray.engines.lengths import ExpectedLength


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
