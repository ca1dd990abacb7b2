"""Counters of an engine loop."""

from __future__ import annotations

from dataclasses import dataclass

from hfray.runs.snapshot import Totals


@dataclass(slots=True)
class LoopStats(Totals):
    """Counters since the loop started, and what the engine is doing now.

    Attributes:
        last_full: `time.time()` of the last step that used at least 80 % of the capacity; 0 before the first.
        running: rows in the engine's last step.
        waiting: rows that wait for room in the engine.
        capacity: rows that the engine can run at once.
    """

    last_full: float = 0.0
    running: int = 0
    waiting: int = 0
    capacity: int = 0
