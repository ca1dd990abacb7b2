"""Errors in OpenAI's format."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hfray.errors import EngineDiedError
from hfray.serve.errors import (
    ApiError,
    cut_short,
    error_body,
    error_response,
    on_http_error,
    on_invalid_request,
    overloaded,
)

REQUEST = Request({"type": "http", "method": "PUT", "path": "/nothing", "headers": []})


def error_of(response: Response) -> dict:
    return json.loads(bytes(response.body))["error"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_the_status(status, kind):
    body = error_body(ApiError(status, "text", code="code", param="param"))
    assert body == {"error": {"message": "text", "type": kind, "param": "param", "code": "code"}}


def test_headers():
    assert error_response(overloaded("busy")).headers["retry-after"] == "1"
    assert error_response(ApiError(401, "no")).headers["www-authenticate"] == "Bearer"
    assert error_response(cut_short(EngineDiedError("dead"))).status_code == 500


def test_errors_of_the_framework_get_the_format_of_openai():
    missing = asyncio.run(on_http_error(REQUEST, HTTPException(404)))
    assert error_of(missing)["message"] == "path /nothing does not exist"
    method = asyncio.run(on_http_error(REQUEST, HTTPException(405, headers={"Allow": "GET"})))
    assert error_of(method)["message"] == "path /nothing does not accept PUT"
    assert method.headers["allow"] == "GET"


def test_an_invalid_field_is_named():
    fault = {"type": "int_type", "loc": ("body", "stop", 0), "msg": "wrong", "input": "x"}
    response = asyncio.run(on_invalid_request(REQUEST, RequestValidationError([fault])))
    assert response.status_code == 400
    assert error_of(response) == {
        "message": "stop.0: wrong",
        "type": "invalid_request_error",
        "param": "stop.0",
        "code": "int_type",
    }
