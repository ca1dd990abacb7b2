"""One calm line while a run goes on: live on a terminal, a plain line every so often in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LOG_SECONDS = 10.0  # between plain lines
RATE_WINDOW = 60.0  # seconds over which rates are taken: long enough that the time left settles


class RunProgress:
    """Rows done of total, rates, failures and time left, from the Monitor's snapshots.

    Args:
        total: rows of the table; `done_before` of them were done by earlier runs.
    """

    def __init__(self, total: int, done_before: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._before = total, done_before
        self._samples: deque[tuple[float, int, int]] = deque()
        self._last_line = time.monotonic()
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("starting", total=total, completed=done_before)

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """Print a line that stays."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def update(self, snapshot: dict[str, Any]) -> None:
        """Show what the workers have done by now."""
        totals = snapshot["totals"]
        rows, tokens = totals.get("rows", 0), totals.get("generated_tokens", 0)
        done = min(self._total, self._before + rows)
        text = self._describe(snapshot, rows, tokens)
        self._bar.update(self._task, completed=done, description=text)
        now = time.monotonic()
        if not self._live and now - self._last_line >= LOG_SECONDS:
            self._last_line = now
            print(f"{done:,} of {self._total:,} rows  {text}", file=sys.stderr, flush=True)

    def _describe(self, snapshot: dict[str, Any], rows: int, tokens: int) -> str:
        if not snapshot["workers_ready"]:
            return f"{snapshot['workers']} workers starting" if snapshot["workers"] else "waiting for workers"
        now = time.monotonic()
        self._samples.append((now, rows, tokens))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW:
            self._samples.popleft()
        since, rows_then, tokens_then = self._samples[0]
        seconds = max(now - since, 1e-3)
        rate = (rows - rows_then) / seconds
        parts = [f"{rate:,.1f} rows/s", f"{(tokens - tokens_then) / seconds:,.0f} tokens/s"]
        parts.append(f"{snapshot['totals'].get('failed_rows', 0):,} failed")
        left = self._total - self._before - rows
        if rate > 0 and left > 0 and rows >= 8:
            parts.append(f"{duration(left / rate)} left")
        if snapshot["deaths"]:
            parts.append(f"{snapshot['deaths']} workers replaced")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 10 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
