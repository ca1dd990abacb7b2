"""How many requests the service takes on at once."""

from __future__ import annotations

from collections.abc import Callable

from hfray.serve.errors import ApiError
from hfray.serve.request import Session

TICKET = "hfray.ticket"  # where a request's ticket is in its ASGI scope


class Admission:
    """How many completions one replica has taken on, engine and queue together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def take(self, count: int) -> None:
        """Raises ApiError 503 where they are too many now, 400 where they always would be."""
        if self.taken + count > self.limit:
            raise ApiError(
                503, f"the server is busy: {self.taken} completions run or wait. Try again.", code="overloaded"
            )
        self.taken += count


class Ticket:
    """A request's leave to use the engine: its share of the admission and its session, both gone at `close`."""

    def __init__(self, admission: Admission, on_close: Callable[[Session], None]) -> None:
        admission.take(1)
        self._admission, self._on_close, self._count = admission, on_close, 1
        self._session: Session | None = None

    def widen(self, count: int) -> None:
        """Ask for `count` completions in all. Raises ApiError."""
        if count > self._admission.limit:
            raise ApiError(400, f"{count} completions in one request, and the server takes {self._admission.limit}")
        if count > 1:
            self._admission.take(count - self._count)
            self._count = count

    def hold(self, session: Session) -> Session:
        """Close the session with the ticket."""
        self._session = session
        return session

    def close(self) -> None:
        """Give everything back; safe whatever became of the request."""
        self._admission.taken -= self._count
        self._count = 0
        if self._session is not None:
            self._session.close()
            self._on_close(self._session)
