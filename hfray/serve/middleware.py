"""The checks around every request: host, API key, size, time, admission. Also every error in OpenAI's form."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfray.config.serve import is_loopback
from hfray.errors import EngineDiedError
from hfray.serve.admission import TICKET, Ticket
from hfray.serve.errors import ApiError, error_response, log_failure, overloaded, stopping

if TYPE_CHECKING:
    from hfray.serve.replica import Service

OPEN_PATHS = {"/", "/health", "/ping", "/openapi.json"}  # they reveal nothing of the model or of anyone's requests


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
            async with asyncio.timeout(self._settings.reader_timeout):
                await send(message)

        ticket: Ticket | None = None
        try:
            self._check(scope)
            if scope["method"] == "POST":
                self._check_engine()
                receive = _replay(await self._read_body(receive), receive)
                ticket = scope[TICKET] = Ticket(self._service.admission, self._service.close_session)
            await self._app(scope, receive, counting_send)
        except ClientDisconnect:
            return
        except Exception as error:
            if status:  # the response has begun, so the only way to report the error is to break the connection
                log_failure(error)
                raise ConnectionError("the response was cut short") from None
            if not isinstance(error, ApiError):
                log_failure(error)
                error = ApiError(500, "the server failed on this request", code="internal_error")
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
        protected = bool(self._service.keys) or self._settings.allow_public
        if not protected:
            self._check_names(headers)
        if scope["path"] in OPEN_PATHS:
            return
        if self._service.keys:
            if not self._service.keys.accepts(headers.get(b"authorization", b"")):
                raise ApiError(401, "no valid API key: send `Authorization: Bearer KEY`", code="invalid_api_key")
        elif not protected and not _is_local(scope):
            raise ApiError(
                403, "this server has no API keys (serve.api_keys) and answers only requests from its own machine"
            )

    def _check_engine(self) -> None:
        """Refuse early, before the body is read, if the engine cannot take the request anyway."""
        if self._service.stopping:
            raise stopping()
        self._service.admission.check()
        try:
            self._service.check()
        except EngineDiedError as error:
            raise overloaded("the engine of this replica is being replaced. Try again.") from error

    def _check_names(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse the requests of foreign web pages, which a browser on this machine may send here (DNS rebinding)."""
        for name in ("host", "origin"):
            value = headers.get(name.encode(), b"").decode("latin-1")
            if value in self._settings.cors_origins or not value:
                continue
            host = _hostname(value if name == "origin" else f"//{value}")
            if not (is_loopback(host) or host in self._settings.hosts):
                raise ApiError(
                    403,
                    f"this server has no API keys and does not answer to the {name.capitalize()} {value!r}. Use "
                    "localhost, or add the name to serve.hosts.",
                )

    async def _read_body(self, receive: Receive) -> bytes:
        """The whole body. Raises ApiError if it is too large or too slow, ClientDisconnect if the client is gone."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > self._settings.max_request_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._settings.body_timeout
            raise ApiError(
                408, f"the request's body did not arrive within {seconds:g} s (serve.body_timeout)", code="timeout"
            ) from None

    def _too_large(self) -> ApiError:
        limit = self._settings.max_request_bytes
        return ApiError(413, f"the request is larger than {limit} bytes (serve.max_request_bytes)", code="too_large")


def _is_local(scope: Scope) -> bool:
    """Whether the request was sent to a loopback address. Serve's proxy passes on the address that it listens on."""
    server = scope.get("server")
    return server is not None and is_loopback(server[0])


def _hostname(url: str) -> str:
    """The lower-case host name of a URL; empty if the URL has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body, which was read before, and then waits for the client to disconnect."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay
