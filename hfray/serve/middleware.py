"""Checks that run before a request's body is read: API key, size, admission. Also every error in OpenAI's form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfray.config.serve import is_loopback
from hfray.errors import EngineDiedError
from hfray.serve.admission import TICKET, Ticket
from hfray.serve.errors import ApiError, error_response, log_failure, overloaded

if TYPE_CHECKING:
    from hfray.serve.replica import Service

OPEN_PATHS = {"/", "/health", "/openapi.json"}  # they reveal nothing of the model or of anyone's requests


class Guard:
    """ASGI middleware around the API.

    Every request ends here, in the `finally` that closes its ticket: answered, failed, or abandoned by its client.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._settings = app, service, service.settings.serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        ticket: Ticket | None = None
        try:
            self._check(scope)
            if scope["method"] == "POST":
                self._check_engine()
                ticket = scope[TICKET] = Ticket(self._service.admission, self._service.close_session)
            await self._app(scope, self._bounded(receive), counting_send)
        except Exception as error:
            if not isinstance(error, ApiError):
                log_failure(error)
                error = ApiError(500, "the server failed on this request", code="internal_error")
            if status:  # the response has begun, so the only way to report the error is to break the connection
                raise ConnectionError("the response was cut short") from None
            await error_response(error)(scope, receive, counting_send)
        finally:
            if ticket is not None:
                ticket.close()
            self._service.count_request(getattr(scope.get("route"), "path", "other"), status or 499)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._settings.max_request_bytes:
            raise self._too_large()
        if scope["path"] in OPEN_PATHS:
            return
        if self._service.keys:
            if not self._service.keys.accepts(headers.get(b"authorization", b"")):
                raise ApiError(401, "no valid API key: send `Authorization: Bearer KEY`", code="invalid_api_key")
        elif not self._settings.allow_public and not _is_local(scope):
            raise ApiError(
                403, "this server has no API keys (serve.api_keys) and answers only requests from its own machine"
            )

    def _check_engine(self) -> None:
        try:
            self._service.check()
        except EngineDiedError as error:
            raise overloaded("the engine of this replica is being replaced. Try again.") from error

    def _bounded(self, receive: Receive) -> Receive:
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._settings.max_request_bytes:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        limit = self._settings.max_request_bytes
        return ApiError(413, f"the request is larger than {limit} bytes (serve.max_request_bytes)", code="too_large")


def _is_local(scope: Scope) -> bool:
    """Whether the request was sent to a loopback address. Serve's proxy passes on the address that it listens on."""
    server = scope.get("server")
    return server is not None and is_loopback(server[0])
