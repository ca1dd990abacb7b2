"""Whether the process of a run still lives."""

from __future__ import annotations

import psutil


def process_lives(pid: int, began: float) -> bool:
    """Whether the process with this id, started at this time, still lives on this machine. Ids are reused."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - began) < 1
    except psutil.Error:
        return False
