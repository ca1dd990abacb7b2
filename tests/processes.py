"""Processes of a job, and jobs that pause in the middle of their work until a test releases them."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

WAIT_SECONDS = 180
MARK = "HFRAY_TEST_JOB"  # an environment variable: every process of a job has the job's value


def named(parent: int, name: str) -> list[psutil.Process]:
    """Descendants of a process with this name in their command line."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def open_ports(parent: int) -> set[tuple[str, int]]:
    """Addresses and ports on which a process and its descendants listen."""
    found = set()
    for process in [psutil.Process(parent), *psutil.Process(parent).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port))
    return found


def marked(mark: str) -> list[psutil.Process]:
    """All living processes with this mark in their environment, also those with another parent."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for_file(folder: Path) -> None:
    """Wait until a job has written a file of rows."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not list(folder.glob("*.parquet")):
        assert time.monotonic() < deadline, f"no file in {folder}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Hold:
    """Makes every `fake` engine of a job pause after `rows` answered rows, until `release`.

    A test can then act in the middle of a job, at any speed of the machine.
    """

    folder: Path
    rows: int

    @property
    def backend(self) -> dict[str, str | int]:
        """Settings of the engines."""
        log, until = str(self.folder / "answered"), str(self.folder / "released")
        return {"answer_log": log, "hold_after": self.rows, "hold_until": until}

    @property
    def overrides(self) -> list[str]:
        return [f"backend.{key}={value}" for key, value in self.backend.items()]

    def answered(self) -> Counter[int]:
        """Rows answered so far, by process id."""
        log = self.folder / "answered"
        return Counter(map(int, log.read_bytes().split())) if log.exists() else Counter()

    def wait(self, workers: int, job: subprocess.Popen | None = None) -> list[int]:
        """Wait until `workers` processes have paused; returns their ids."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(held := [pid for pid, rows in self.answered().items() if rows >= self.rows]) < workers:
            assert job is None or job.poll() is None, job.stdout.read()
            assert time.monotonic() < deadline, f"rows answered by process: {self.answered()}"
            time.sleep(0.05)
        return held

    def release(self) -> None:
        (self.folder / "released").touch()

    @contextlib.contextmanager
    def acting(self, workers: int, act: Callable[[list[int]], None] = lambda pids: None) -> Iterator[None]:
        """While a job runs in this process: wait until `workers` processes have paused, call `act`, then release them."""

        def midway() -> None:
            try:
                act(self.wait(workers))
            finally:
                self.release()

        thread = threading.Thread(target=midway, daemon=True)  # a job that fails early must not wait for this thread
        thread.start()
        yield
        thread.join()
