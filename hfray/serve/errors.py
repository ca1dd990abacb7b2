"""Errors in OpenAI's form."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from hfray.errors import EngineDiedError

RETRY_SECONDS = 1
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class ErrorDetail(BaseModel):
    """One error in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The JSON body of every error response."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An error response; `detail` is the message for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param


def error_body(error: ApiError) -> dict[str, object]:
    """The JSON body of an error."""
    status = error.status_code
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": error.detail, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: ApiError) -> JSONResponse:
    """The HTTP response of an error."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_SECONDS)}}
    return JSONResponse(error_body(error), error.status_code, error.headers or headers.get(error.status_code))


class ServerStoppedError(EngineDiedError):
    """The server stops, and a request has not finished within `serve.drain_seconds`."""


def cut_short(error: EngineDiedError) -> ApiError:
    """The error of a request that was in the engine when the engine died or the server stopped."""
    if isinstance(error, ServerStoppedError):
        return ApiError(503, "the server stopped before this answer was complete. Try again.", code="stopped")
    return ApiError(500, "the engine died while it processed this request. Try again.", code="engine_died")


def stopping() -> ApiError:
    """The error of a request that arrives while the server stops."""
    return ApiError(503, "the server is stopping. Try again.", code="stopping")


def overloaded(message: str) -> ApiError:
    """The error of a request that the server cannot accept now."""
    return ApiError(503, message, code="overloaded")


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: Starlette's own errors (unknown path, wrong method) in OpenAI's form."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error_response(error)
    path = request.url.path
    messages = {404: f"path {path} does not exist", 405: f"path {path} does not accept {request.method}"}
    message = messages.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    """Exception handler: a body that pydantic refuses is a 400 that names the field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    message = f"{field}: {first['msg']}" if field else first["msg"]
    return error_response(ApiError(400, message, param=field or None, code=first["type"]))


def log_failure(error: BaseException) -> None:
    """Log the type and the traceback of an unexpected error, without its message: the message may contain a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logging.getLogger("ray.serve").error("request failed: %s\n%s", type(error).__name__, where)
