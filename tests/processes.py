"""Processes that a test or a job has started, by what their titles say."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil


def named(parent: int, name: str) -> list[psutil.Process]:
    """Processes below the parent's with the name in their title."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_one(output: Path, name: str) -> list[int]:
    """Kill -9, on a thread, one of this process's own with the name, once there is an output file.

    Returns a list that holds its id from then on.
    """
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.2)
            workers = named(psutil.Process().pid, name) if list(output.glob("*.parquet")) else []
            if workers:
                workers[0].kill()
                killed.append(workers[0].pid)

    threading.Thread(target=kill, daemon=True).start()
    return killed
