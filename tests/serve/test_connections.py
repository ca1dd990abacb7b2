"""The time limit of headers, on a real uvicorn server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hfray.serve.connections import limit_header_time

LIMIT, WORK = 0.5, 1.5  # seconds: of the headers, and of a request
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope, receive, send):
    await asyncio.sleep(WORK)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})


@pytest.fixture(scope="module", params=[H11Protocol, HttpToolsProtocol])
def port(request) -> Iterator[int]:
    protocol = type("Limited", (request.param,), {})
    limit_header_time(protocol, LIMIT)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(app, http=protocol, lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        yield connection


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_without_complete_headers_is_closed(port, sent):
    with connected(port) as connection:
        connection.sendall(sent)
        assert connection.recv(100) == b""


def test_a_client_that_sends_a_header_now_and_then_is_closed(port):
    with connected(port) as connection, pytest.raises(OSError):  # noqa: PT012
        connection.sendall(b"GET / HTTP/1.1\r\n")
        for number in range(600):
            connection.sendall(b"X-%d: x\r\n" % number)
            time.sleep(0.1)


def test_a_request_may_take_longer_than_its_headers(port):
    with connected(port) as connection:
        for _ in range(2):  # on one connection
            connection.sendall(REQUEST)
            answer = b""
            while not answer.endswith(b"done"):
                received = connection.recv(1000)
                assert received, answer
                answer += received


def test_the_second_request_of_a_connection_has_the_limit_too(port):
    with connected(port) as connection:
        connection.sendall(REQUEST)
        answer = b""
        while not answer.endswith(b"done"):
            answer += connection.recv(1000)
        connection.sendall(REQUEST[:-2])
        assert connection.recv(100) == b""
