"""The checks around every request, at the level of ASGI messages, with a test application and a test service."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from hfray.config.serve import ServerSettings
from hfray.errors import EngineDiedError
from hfray.serve.admission import TICKET, Admission
from hfray.serve.keys import ApiKeys
from hfray.serve.middleware import Guard


class Fake:
    """The part of a service that the middleware uses."""

    def __init__(self, **options: Any) -> None:
        self.settings = SimpleNamespace(serve=ServerSettings(**options))
        self.keys, self.admission, self.stopping = ApiKeys(), Admission(2), False
        self.counted: list[tuple[str, int]] = []
        self.dead = False

    def check(self) -> None:
        if self.dead:
            raise EngineDiedError("dead")

    def close_session(self, session: object) -> None:
        raise AssertionError("no session was opened")

    def count_request(self, path: str, status: int) -> None:
        self.counted.append((path, status))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body of the request."""
    assert scope["method"] == "GET" or TICKET in scope
    body = (await receive()).get("body", b"")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def scope(method: str = "POST", server: str = "127.0.0.1", **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": "/v1/completions", "headers": pairs, "server": (server, 80)}


class Client:
    """Sends the parts of a body, then nothing more; collects the response."""

    def __init__(self, *parts: bytes, whole: bool = True, gone: bool = False) -> None:
        self._parts = list(parts) or [b""]
        self._whole, self._gone = whole, gone
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts) or not self._whole}
        if self._gone:
            return {"type": "http.disconnect"}
        return await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.sent[1]["body"])["error"]


def run(service: Any, client: Client, scope: dict[str, Any], app: Any = echo) -> None:
    asyncio.run(asyncio.wait_for(Guard(app, service)(scope, client.receive, client.send), 30))
    assert service.admission.taken == 0


def test_the_application_gets_the_whole_body_and_a_ticket():
    service, client = Fake(), Client(b"one ", b"two")
    run(service, client, scope())
    assert client.status == 200
    assert client.sent[1]["body"] == b"one two"
    assert service.counted == [("other", 200)]


def test_a_body_that_never_comes_holds_no_ticket_and_times_out():
    service, client = Fake(body_timeout=0.2), Client(b"half", whole=False)

    async def ask() -> None:
        request = asyncio.create_task(Guard(echo, service)(scope(), client.receive, client.send))  # type: ignore
        await asyncio.sleep(0.05)
        assert service.admission.taken == 0
        await request

    asyncio.run(asyncio.wait_for(ask(), 30))
    assert client.status == 408
    assert client.error["code"] == "timeout"


def test_a_client_that_disconnects_while_it_sends_causes_no_error(caplog):
    service, client = Fake(), Client(b"half", whole=False, gone=True)
    run(service, client, scope())
    assert client.sent == []
    assert service.counted == [("other", 499)]
    assert caplog.text == ""


def test_a_stalled_reader_gives_its_ticket_back():
    service, client = Fake(reader_timeout=0.2), Client()

    async def stall(message: Any) -> None:
        client.sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    client.send = stall  # type: ignore
    with pytest.raises(ConnectionError):
        run(service, client, scope())
    assert service.admission.taken == 0


@pytest.mark.parametrize("length", [True, False])
def test_a_large_body_is_refused(length):
    service, client = Fake(max_request_bytes=10), Client(b"x" * 8, b"x" * 8)
    run(service, client, scope(**({"content_length": "16"} if length else {})))
    assert client.status == 413
    assert client.error["code"] == "too_large"


@pytest.mark.parametrize("reason", ["full", "stopping", "dead"])
def test_a_request_that_cannot_run_is_refused_before_its_body(reason):
    service, client = Fake(), Client(b"", whole=False)
    service.stopping, service.dead = reason == "stopping", reason == "dead"
    if reason == "full":
        service.admission.take(2)
    asyncio.run(asyncio.wait_for(Guard(echo, service)(scope(), client.receive, client.send), 5))  # type: ignore
    assert client.status == 503
    assert any(name == b"retry-after" for name, _ in client.sent[0]["headers"])


def test_keys():
    import hashlib

    service = Fake()
    service.keys = ApiKeys([hashlib.sha256(b"key").digest()])
    for header, status in (("Bearer key", 200), ("Bearer other", 401), ("", 401)):
        client = Client()
        run(service, client, scope(authorization=header, server="10.0.0.1", host="any.example"))
        assert client.status == status


def test_without_keys_only_requests_of_this_machine_are_answered():
    for service, server, status in ((Fake(), "10.0.0.1", 403), (Fake(allow_public=True), "10.0.0.1", 200)):
        client = Client()
        run(service, client, scope(server=server))
        assert client.status == status


def test_an_unexpected_error_is_logged_without_its_message(caplog):
    prompt = "the secret prompt"

    async def broken(*_: Any) -> None:
        raise RuntimeError(prompt)

    service, client = Fake(), Client()
    run(service, client, scope(), broken)
    assert client.status == 500
    assert client.error["code"] == "internal_error"
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_an_error_after_the_response_began_breaks_the_connection():
    async def broken(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("secret")

    with pytest.raises(ConnectionError):
        run(Fake(), Client(), scope(), broken)
