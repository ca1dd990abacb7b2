"""Errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

RETRY_SECONDS = 1
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


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


def died() -> ApiError:
    """What a request is told whose engine died."""
    return ApiError(500, "the engine died under this request. Try again.", code="engine_died")
