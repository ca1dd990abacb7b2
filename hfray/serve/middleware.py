"""Who may ask, how much, and how many at once: decided before a request's body is read."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfray.config.serve import ServerSettings, is_loopback
from hfray.errors import EngineDiedError, SettingsError
from hfray.serve.admission import TICKET, Ticket
from hfray.serve.errors import ApiError, error_response

OPEN_PATHS = {"/", "/health", "/openapi.json"}  # nothing of the model's or of anyone's requests


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
