"""Progress of a run: two live lines on a terminal, or a plain line every 10 to 60 s in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from hfray.runs.pace import Pace
from hfray.runs.snapshot import Snapshot
from hfray.runs.timeleft import Estimate
from hfray.runs.words import engine_words, left_words, pace_words

LOG_SECONDS, LOG_SECONDS_LATER = 10.0, 60.0  # between plain lines: in a young run, and in a long one
RATE_WINDOW = 60.0  # seconds; the rates shown are averages over this time


class RunProgress:
    """Shows rows done, rates, failures, workers, occupancy and time left, from the Monitor's snapshots and an estimate.

    Args:
        total: rows of the table.
        done_before: rows that earlier runs did.
        clock: gives the seconds; tests pass their own.
    """

    def __init__(
        self,
        total: int,
        done_before: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._before, self._clock = total, done_before, clock
        self._pace = Pace(RATE_WINDOW)
        self._started = self._last_line = clock()
        self._bar = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=total, completed=done_before)
        self._details = Text("starting", style="dim", overflow="ellipsis", no_wrap=True)
        shown = Group(self._bar, self._details)
        live = self._console.is_terminal
        self._live = Live(shown, console=self._console, transient=True, refresh_per_second=4) if live else None

    def __enter__(self) -> RunProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, message: str) -> None:
        """Print a line above the progress."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def update(self, snapshot: Snapshot, left: Estimate | None = None) -> None:
        """Show what the workers have done so far, and the time left."""
        done = min(self._total, self._before + snapshot.totals.rows)
        details, remaining = self._describe(snapshot), left_words(left)
        self._bar.update(self._task, completed=done, description=remaining)
        self._details.plain = details
        now = self._clock()
        interval = min(max(LOG_SECONDS, (now - self._started) / 20), LOG_SECONDS_LATER)
        if self._live is None and now - self._last_line >= interval:
            self._last_line = now
            line = "  ".join(part for part in (f"{done:,} of {self._total:,} rows", remaining, details) if part)
            print(line, file=sys.stderr, flush=True)

    def _describe(self, snapshot: Snapshot) -> str:
        """Rates, failures and workers in words."""
        workers, ready, totals = snapshot.workers, snapshot.workers_ready, snapshot.totals
        if not ready:
            return f"{workers} workers starting" if workers else "waiting for workers"
        rates = self._pace.add(self._clock(), totals.rows, totals.prompt_tokens, totals.generated_tokens)
        parts = [pace_words(*rates), f"{totals.failed_rows:,} failed"]
        parts.append(engine_words(ready, workers, snapshot.running, snapshot.capacity))
        if snapshot.deaths:
            parts.append(f"{snapshot.deaths} worker{'s' * (snapshot.deaths != 1)} replaced")
        return "  ".join(parts)
