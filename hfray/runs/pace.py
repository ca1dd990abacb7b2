"""How fast a run is, and how long it still takes."""

from __future__ import annotations

import math
from collections import deque

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
