"""Who may ask, how much, and how many at once: decided before a request's body is read."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfray.config.serve import ServerSettings, is_loopback
from hfray.errors import EngineDiedError, SettingsError
from hfray.session import Session

OPEN_PATHS = {"/", "/health", "/openapi.json"}  # nothing of the model's or of anyone's requests
RETRY_SECONDS = 1
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
TICKET = "hfray.ticket"  # where a request's ticket is in its ASGI scope


class ApiError(HTTPException):
    """A request that is not answered; `detail` is for the client."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(status, message)
        self.code, self.param = code, param


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: ApiError) -> JSONResponse:
    """The answer that an error becomes."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_SECONDS)}}
    body = error_body(error.status_code, error.detail, code=error.code, param=error.param)
    return JSONResponse(body, error.status_code, headers.get(error.status_code, error.headers))


def read_key_digests(settings: ServerSettings) -> list[bytes]:
    """SHA-256 digests of the keys that `serve.api_keys` points to; none where it is null.

    Raises:
        SettingsError: there is no such variable or file, or no key in it.
    """
    if settings.api_keys is None:
        return []
    kind, _, where = settings.api_keys.partition(":")
    try:
        text = os.environ[where] if kind == "env" else Path(where).expanduser().read_text()
    except (KeyError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"serve.api_keys={settings.api_keys}: cannot be read ({type(error).__name__}). "
            "Set that variable, or name a readable file, with one or more keys between commas or line ends."
        ) from error
    keys = [key for key in (part.strip() for part in text.replace(",", "\n").splitlines()) if key]
    if not keys:
        raise SettingsError(
            f"serve.api_keys={settings.api_keys}: holds no key. Put one in, or set serve.api_keys=null."
        )
    return [hashlib.sha256(key.encode()).digest() for key in keys]


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


class Guard:
    """ASGI middleware around the API: keys, size, admission, and every error in OpenAI's form.

    A ticket's `close`, in a `finally` here, is where every request ends: answered, failed, or its client gone.

    Args:
        service: has `check`, `admission`, `close_session`, `count_request`.
        digests: of the keys that let a client in; none asks for no key.
    """

    def __init__(self, app: ASGIApp, service: Any, settings: ServerSettings, digests: Sequence[bytes]) -> None:
        self._app, self._service, self._settings, self._digests = app, service, settings, digests

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
                _log(error)
                error = ApiError(500, "the server failed on this request", code="internal_error")
            if status:  # too late for an answer of its own: the connection breaks off
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
        if self._digests:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            digest = hashlib.sha256(token.strip()).digest()
            # every key is compared, so that the time taken tells nothing
            known = sum([hmac.compare_digest(digest, key) for key in self._digests])
            if scheme.lower() != b"bearer" or not known:
                raise ApiError(401, "no valid API key: send `Authorization: Bearer KEY`", code="invalid_api_key")
        elif not self._settings.allow_public and not _is_local(scope):
            raise ApiError(403, "this server has no API keys (serve.api_keys), and answers its own machine only")

    def _check_engine(self) -> None:
        try:
            self._service.check()
        except EngineDiedError as error:
            raise ApiError(503, "this replica's engine is being replaced. Try again.", code="overloaded") from error

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
        return ApiError(413, f"the request is larger than {self._settings.max_request_bytes} bytes", code="too_large")


def _is_local(scope: Scope) -> bool:
    """Whether the request came to a loopback address; Serve's proxy hands on the address that it was asked at."""
    server = scope.get("server")
    return server is not None and is_loopback(server[0])


def _log(error: BaseException) -> None:
    """What failed and where; not the message, which may hold a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logging.getLogger("ray.serve").error("request failed: %s\n%s", type(error).__name__, where)
