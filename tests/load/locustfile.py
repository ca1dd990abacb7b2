"""Load on /v1/completions: clients read streams and measure the times of their tokens.

    locust -f tests/load/locustfile.py --headless -u 64 -r 64 -t 5m --host http://127.0.0.1:8000 \
        --questions questions.jsonl --max-tokens 64 --summary load.json Client

The classes Vanishing, Stalling and HalfBody are clients that misbehave. Without class names, locust mixes all classes;
`... --summary load.json Client` runs only the measuring clients.

A 503 is the server's deliberate answer to too many requests. It is counted, is not a failure, and the client waits
for as long as Retry-After says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

import gevent
from locust import FastHttpUser, User, constant, events, task

TEMPLATE = "Question: {}\n\nAnswer: Let's think step by step."
QUESTIONS = [f"What is {n} and {n * 7}, and why is the sky blue?" for n in range(500)]


class Totals:
    """The measurements of all clients."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first: list[float] = []
        self.gaps: list[float] = []
        self.statuses: dict[str, int] = {}
        self.tokens = 0

    def summary(self) -> dict:
        """Counts, rates (per second), and times (milliseconds)."""
        seconds = time.monotonic() - self.started
        return {
            "seconds": round(seconds, 1),
            "statuses": self.statuses,
            "output_tokens": self.tokens,
            "output_tokens_per_second": round(self.tokens / seconds, 1),
            "time_to_first_token_ms": quantiles(self.first),
            "time_between_tokens_ms": quantiles(self.gaps),
        }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest, in milliseconds."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49] * 1e3, 1), "p99": round(cuts[98] * 1e3, 1), "max": round(max(seconds) * 1e3, 1)}


totals = Totals()
numbers = itertools.count()


@events.init_command_line_parser.add_listener
def _(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", default="", help="JSONL with a `question` in each line")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--summary", default="", help="JSON file for the totals")


@events.test_start.add_listener
def _(environment, **_: object) -> None:
    global totals
    path = environment.parsed_options.questions
    if path:
        QUESTIONS[:] = [json.loads(line)["question"] for line in Path(path).read_text().splitlines() if line]
    totals = Totals()


@events.test_stop.add_listener
def _(environment, **_: object) -> None:
    text = json.dumps(totals.summary(), indent=1)
    print(text)
    if environment.parsed_options.summary:
        Path(environment.parsed_options.summary).write_text(text + "\n")


class Rough(User):
    """A client that does something wrong, over a plain socket, and counts what it saw under its own name."""

    abstract = True
    wait_time = constant(0.2)

    @task
    def act(self) -> None:
        started = time.monotonic()
        seen = "closed"
        try:
            with self._connection() as connection:
                seen = self.attempt(connection)
        except OSError as error:
            seen = type(error).__name__
        name = f"{type(self).__name__} {seen}"
        totals.statuses[name] = totals.statuses.get(name, 0) + 1
        self.environment.events.request.fire(
            request_type="RAW", name=name, response_time=(time.monotonic() - started) * 1e3, response_length=0
        )

    def attempt(self, connection: socket.socket) -> str:
        """Misbehave on an open connection; returns what was seen."""
        raise NotImplementedError

    def _connection(self) -> socket.socket:
        found = urlsplit(self.host or self.environment.host)
        return socket.create_connection((found.hostname, found.port), timeout=60)

    def _send(self, connection: socket.socket, *, cut: int = 0) -> None:
        """Send a streaming request, without the last `cut` bytes of its body."""
        body = json.dumps({"prompt": QUESTIONS[next(numbers) % len(QUESTIONS)], "max_tokens": 64, "stream": True})
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {urlsplit(self.environment.host).netloc}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body[: len(body) - cut]).encode())


class Vanishing(Rough):
    """Closes the connection after the first bytes of the answer."""

    def attempt(self, connection: socket.socket) -> str:
        self._send(connection)
        return connection.recv(64).partition(b"\r\n")[0].decode()[9:12] or "no answer"


class Stalling(Rough):
    """Sends a request, and reads nothing of the answer for ten seconds."""

    def attempt(self, connection: socket.socket) -> str:
        self._send(connection)
        gevent.sleep(10)
        return connection.recv(64).partition(b"\r\n")[0].decode()[9:12] or "no answer"


class HalfBody(Rough):
    """Sends half a body, and waits for the server's answer (408 after `serve.body_timeout`)."""

    def attempt(self, connection: socket.socket) -> str:
        self._send(connection, cut=20)
        return connection.recv(64).partition(b"\r\n")[0].decode()[9:12] or "no answer"


class Client(FastHttpUser):
    """Sends the next question as soon as the last one is answered."""

    wait_time = constant(0)
    network_timeout = connection_timeout = 120.0

    @task
    def complete(self) -> None:
        question = QUESTIONS[next(numbers) % len(QUESTIONS)]
        body = {
            "prompt": TEMPLATE.format(question),
            "max_tokens": self.environment.parsed_options.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent = time.monotonic()
        with self.client.post("/v1/completions", json=body, stream=True, catch_response=True) as response:
            status = str(response.status_code)
            if status == "503" and "retry-after" in response.headers:
                response.success()
                gevent.sleep(float(response.headers["retry-after"]))
            elif status == "200":
                status = self._read(response, sent)
                response.success() if status == "200" else response.failure(status)
            else:
                response.failure(status)
        totals.statuses[status] = totals.statuses.get(status, 0) + 1

    def _read(self, response, sent: float) -> str:
        last, done, tokens, usage = None, False, 0, None
        try:
            while line := response.stream.readline(b"\n"):
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    tokens = 0
                    return event["error"]["message"]
                now = time.monotonic()
                if event["choices"] and event["choices"][0]["text"]:
                    (totals.first if last is None else totals.gaps).append(now - (sent if last is None else last))
                    last, tokens = now, tokens + 1
                usage = event.get("usage") or usage
        finally:  # the end of the test cuts streams short: their events so far count as one token each
            totals.tokens += usage["completion_tokens"] if usage else tokens
        return "200" if done else "cut short"
