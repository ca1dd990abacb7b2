"""Start the online service in a process of its own, as users do."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.processes import WAIT_SECONDS


def free_port() -> int:
    """A free port outside the range of ephemeral ports, from which Ray's processes could take the port first."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A running `python -m jobs.serve`."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log
        self.url = f"http://127.0.0.1:{port}"

    def metric(self, name: str) -> float:
        """The sum of a metric over replicas and labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def wait_for(self, name: str, value: float, seconds: float = WAIT_SECONDS) -> float:
        """Wait until a metric has a value; returns the seconds."""
        started = time.monotonic()
        while self.metric(name) != value:
            assert time.monotonic() - started < seconds, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.02)
        return time.monotonic() - started


@contextlib.contextmanager
def serving(*overrides: str, seconds: float = WAIT_SECONDS) -> Iterator[Server]:
    """Run a server with `overrides`; interrupt it at the end, as Ctrl-C at a terminal does."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as out:
            command = [sys.executable, "-m", "jobs.serve", f"serve.port={port}", *overrides]
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            deadline = time.monotonic() + seconds
            while "ready:" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield Server(process, port, log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
