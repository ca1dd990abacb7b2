"""Errors of Ray Serve's proxy in OpenAI's form, at the level of ASGI messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from hfray.serve.proxy import OpenAIErrors
from tests.serve.test_middleware import Client, scope


def start(kind: str, status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]}


def body(text: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text, "more_body": more}


def run(app: Any, path: str = "/v1/completions") -> Client:
    client = Client()
    asyncio.run(OpenAIErrors(app)({**scope(), "path": path}, client.receive, client.send))
    return client


def sends(*messages: dict[str, Any]) -> Any:
    """A proxy that sends these messages and ends."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


@pytest.mark.parametrize(("status", "code"), [(404, "not_deployed"), (408, "timeout"), (503, "unavailable")])
def test_an_error_in_plain_text_becomes_json(status, code):
    client = run(PlainTextResponse("what Ray says", status))
    assert client.status == status
    assert (client.error["message"], client.error["code"]) == ("what Ray says", code)
    assert ((b"retry-after", b"1") in client.sent[0]["headers"]) == (status == 503)


@pytest.mark.parametrize(
    "response", [JSONResponse({"error": "ours"}, 503), JSONResponse({}), PlainTextResponse("hfray_requests_total 1")]
)
def test_other_responses_pass_unchanged(response):
    assert run(response).sent == run(response, "/-/healthz").sent


def test_the_paths_of_ray_serve_pass_unchanged():
    assert run(PlainTextResponse("not healthy", 503), "/-/healthz").sent[1]["body"] == b"not healthy"


def test_a_lost_replica_before_its_answer():
    client = run(sends())
    assert client.status == 500
    assert client.error["code"] == "replica_lost"


def test_a_lost_replica_in_a_stream_is_the_last_event():
    whole = [start("text/event-stream"), body(b"data: 1\n\n"), body(b"data: [DONE]\n\n"), body(b"", more=False)]
    assert run(sends(*whole)).sent == whole
    cut = run(sends(*whole[:2])).sent
    assert cut[:2] == whole[:2]
    assert cut[2]["body"].startswith(b'data: {"error":{"message":"the process that ran this request was lost')
    assert not cut[2].get("more_body")


def test_an_answer_without_events_stays_cut():
    cut = [start("application/json"), body(b'{"id"')]
    assert run(sends(*cut)).sent == cut


@pytest.mark.parametrize(
    ("error", "status"), [(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "secret"), 400), (KeyError("secret"), 500)]
)
def test_an_exception_of_the_proxy(error, status, caplog):
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise error

    client = run(fails)
    assert client.status == status
    assert "secret" not in client.error["message"] + caplog.text
