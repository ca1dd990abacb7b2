"""Two calm lines while a run goes on: live on a terminal, a plain line every so often in a log."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

LOG_SECONDS, LOG_SECONDS_LATER = 10.0, 60.0  # between plain lines: at first, and once a run has gone on for long
RATE_WINDOW = 60.0  # seconds over which the rates shown are taken
SETTLED_SECONDS = 180.0  # ... and, at least, the rate that the time left is told by
MIN_ROWS, MIN_SECONDS = 8, 10.0  # finished and gone by, before a time is named


class Pace:
    """Counters over time, and their rates over a window.

    Args:
        window: seconds at least; `share` of the time since the first sample where that is longer.
    """

    def __init__(self, window: float, share: float = 0.0) -> None:
        self._window, self._share = window, share
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque()
        self._first: float | None = None

    def add(self, now: float, *counters: float) -> tuple[float, ...]:
        """Note the counters as they are at `now`; returns their rates."""
        self._first = now if self._first is None else self._first
        window = max(self._window, self._share * (now - self._first))
        samples = self._samples
        if len(samples) > 1 and now - samples[-2][0] < window / 200:
            samples.pop()  # a long window needs no close samples
        samples.append((now, counters))
        while len(samples) > 2 and now - samples[1][0] >= window:
            samples.popleft()
        then, before = samples[0]
        seconds = max(now - then, 1e-3)
        return tuple(max(0.0, (a - b) / seconds) for a, b in zip(counters, before, strict=True))


class TimeLeft:
    """Seconds to the end, from the rate over half of the run, smoothed: it settles down instead of jumping.

    Rates are smoothed, and not times: a moment without a finished row would make the time left endless.
    """

    def __init__(self) -> None:
        self._pace = Pace(SETTLED_SECONDS, share=0.5)
        self._started: float | None = None
        self._rate = 0.0
        self._seen = 0.0

    def update(self, now: float, rows: int, remaining: int) -> float | None:
        """Take in the rows done by now; returns the seconds left, or None while that cannot be told."""
        (rate,) = self._pace.add(now, rows)
        self._started = now if self._started is None else self._started
        elapsed, since = now - self._started, now - self._seen
        if rate <= 0 or rows < MIN_ROWS or elapsed < MIN_SECONDS:
            return None
        weight = 1 - math.exp(-since / max(5.0, elapsed / 10)) if self._rate else 1.0
        self._rate += (rate - self._rate) * weight
        self._seen = now
        return remaining / self._rate


class RunProgress:
    """Rows done of total, rates, failures, workers, occupancy and time left, from the Monitor's snapshots.

    Args:
        total: rows of the table; `done_before` of them were done by earlier runs.
        clock: seconds, for tests.
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
        self._pace, self._left = Pace(RATE_WINDOW), TimeLeft()
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
        """Print a line that stays."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def update(self, snapshot: dict[str, Any]) -> None:
        """Show what the workers have done by now."""
        done = min(self._total, self._before + snapshot["totals"].get("rows", 0))
        details, left = self._describe(snapshot)
        self._bar.update(self._task, completed=done, description=left)
        self._details.plain = details
        now = self._clock()
        interval = min(max(LOG_SECONDS, (now - self._started) / 20), LOG_SECONDS_LATER)
        if self._live is None and now - self._last_line >= interval:
            self._last_line = now
            line = "  ".join(part for part in (f"{done:,} of {self._total:,} rows", left, details) if part)
            print(line, file=sys.stderr, flush=True)

    def _describe(self, snapshot: dict[str, Any]) -> tuple[str, str]:
        """(details, time left) in words."""
        workers, ready, totals = snapshot["workers"], snapshot["workers_ready"], snapshot["totals"]
        if not ready:
            return (f"{workers} workers starting" if workers else "waiting for workers"), ""
        rows, now = totals.get("rows", 0), self._clock()
        rates = self._pace.add(now, rows, totals.get("prompt_tokens", 0), totals.get("generated_tokens", 0))
        parts = [pace_words(*rates), f"{totals.get('failed_rows', 0):,} failed"]
        parts.append(engine_words(ready, workers, snapshot["running"], snapshot["capacity"]))
        if snapshot["deaths"]:
            parts.append(f"{snapshot['deaths']} workers replaced")
        left = self._left.update(now, rows, max(0, self._total - self._before - rows))
        return "  ".join(parts), f"{coarse(left)} left" if left else ""


def pace_words(rows: float, prompt_tokens: float, generated_tokens: float) -> str:
    """Rates per second in words."""
    return f"{rows:,.1f} rows/s  {prompt_tokens:,.0f} tokens/s in, {generated_tokens:,.0f} out"


def engine_words(ready: int, workers: int, running: int, capacity: int) -> str:
    """How many workers are at work, and how full their engines are, in words."""
    words = f"{ready} worker{'s' * (ready != 1)}" if ready == workers else f"{ready} of {workers} workers"
    return f"{words}  engines {occupancy(running, capacity):.0%} full" if capacity else words


def pool_words(pool: dict[str, Any]) -> str:
    """What a pool of workers has done, in words, from its counts (`hfray.monitor`)."""
    if not pool.get("workers"):
        return "no worker came up"
    words = f"{pool['workers']} worker{'s' * (pool['workers'] != 1)}, {pool['rows']:,} rows"
    words += f", {pool['prompt_tokens']:,} tokens in, {pool['generated_tokens']:,} out"
    share = pool.get("busy_share")
    return words if share is None else f"{words}, {share:.0%} busy"


def occupancy(running: int, capacity: int) -> float:
    """Share of the engines' capacity in use; OpenVINO reads prompts of more rows in a step than it then runs."""
    return min(1.0, running / capacity) if capacity else 0.0


def coarse(seconds: float) -> str:
    """A time left, to no more digits than it deserves: 40 s, 3 min 20 s, 25 min, 5 h 10 min."""
    step = 1 if seconds < 20 else 5 if seconds < 60 else 10 if seconds < 600 else 60 if seconds < 7200 else 600
    seconds = max(1, round(seconds / step) * step)
    if seconds < 600:
        return duration(seconds).removesuffix(" 0 s")
    return f"{seconds // 60} min" if seconds < 3600 else duration(seconds).removesuffix(" 0 min")


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 10 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
