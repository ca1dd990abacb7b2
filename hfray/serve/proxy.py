"""OpenAI's form for the errors of Ray Serve's proxy, which receives every request before a replica does.

A proxy calls `middlewares` when it starts, if RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH in its environment names it.
"""

from __future__ import annotations

import orjson
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfray.serve.connections import limit_header_time
from hfray.serve.errors import ApiError, error_body, error_response, log_failure

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "hfray.serve.proxy.middlewares"
CODES = {404: "not_deployed", 408: "timeout", 503: "unavailable"}


def middlewares() -> list[Middleware]:
    """What Ray Serve wraps around its proxy. The call also limits the time of the headers in the proxy's process."""
    limit_header_time()
    return [Middleware(OpenAIErrors)]


class OpenAIErrors:
    """ASGI middleware around the proxy. The service's own errors are JSON already, and pass unchanged.

    Without it, the proxy's errors are plain text, and a client whose replica dies gets an empty 500 or a cut stream.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray Serve's own paths
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        error = ApiError(500, "the process that ran this request was lost. Try again.", code="replica_lost")
        try:
            await self._app(scope, receive, answer)
        except UnicodeDecodeError:
            error = ApiError(400, "a header of this request is not valid UTF-8", code="invalid_header")
        except Exception as failure:
            log_failure(failure)
        if answer.refused:
            status = answer.refused
            error = ApiError(status, answer.text.decode(errors="replace"), code=CODES.get(status))
        if not answer.started:
            await error_response(error)(scope, receive, send)
        elif answer.events and not answer.complete:
            await send({"type": "http.response.body", "body": b"data: %b\n\n" % orjson.dumps(error_body(error))})


class _Answer:
    """Passes a response on, except an error in plain text; knows how far the response has come.

    Attributes:
        refused: the status of an error in plain text, which is not passed on; 0 if there is none.
        text: the body of that error.
        events: whether the response is a stream of server-sent events.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = self.complete = self.events = False
        self.refused, self.text = 0, b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            self.events = kind.startswith("text/event-stream")
            if message["status"] >= 400 and not kind.startswith("application/json"):
                self.refused = message["status"]
        if self.refused:
            self.text += message.get("body", b"")
            return
        self.started = True
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
