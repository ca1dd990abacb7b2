"""Admission control: how many completions one replica accepts at once."""

from __future__ import annotations

from collections.abc import Callable

from hfray.serve.errors import ApiError, overloaded
from hfray.serve.request import Session

TICKET = "hfray.ticket"  # the key of a request's ticket in its ASGI scope


class Admission:
    """Counts the completions that one replica has accepted, running and waiting together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def check(self, count: int = 1) -> None:
        """Raises ApiError 503 if `count` more completions exceed the limit."""
        if self.taken + count > self.limit:
            raise overloaded(f"the server is busy: {self.taken} completions are running or waiting. Try again.")

    def take(self, count: int) -> None:
        """Accept `count` more completions. Raises ApiError 503 if they exceed the limit."""
        self.check(count)
        self.taken += count

    def give_back(self, count: int) -> None:
        """Release completions that were accepted."""
        self.taken -= count


class Ticket:
    """A request's share of the admission, and its session; `close` gives both back."""

    def __init__(self, admission: Admission, on_close: Callable[[Session], None]) -> None:
        admission.take(1)
        self._admission, self._on_close, self._count = admission, on_close, 1
        self._session: Session | None = None

    def widen(self, count: int) -> None:
        """Reserve `count` completions in total. Raises ApiError: 503 if the server is busy, 400 above the limit."""
        if count > self._admission.limit:
            raise ApiError(
                400, f"the request asks for {count} completions, and the server accepts {self._admission.limit} at once"
            )
        if count > self._count:
            self._admission.take(count - self._count)
            self._count = count

    def hold(self, session: Session) -> Session:
        """Attach the session, so that `close` closes it too."""
        self._session = session
        return session

    def close(self) -> None:
        """Give back the admission and close the session. Safe to call twice, and after any failure of the request."""
        self._admission.give_back(self._count)
        self._count = 0
        session, self._session = self._session, None
        if session is not None:
            session.close()
            self._on_close(session)
