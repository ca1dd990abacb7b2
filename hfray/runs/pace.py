"""The speed of a run, and the time it has left."""

from __future__ import annotations

import math
from collections import deque

SETTLED_SECONDS = 180.0  # the time left is computed from the rate over at least this time
MIN_ROWS, MIN_SECONDS = 8, 10.0  # finished rows and elapsed time before a time left is given


class Pace:
    """Counters over time, and their rates over a window.

    Args:
        window: seconds. If `share` of the time since the first sample is longer, the window is that long.
    """

    def __init__(self, window: float, share: float = 0.0) -> None:
        self._window, self._share = window, share
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque()
        self._first: float | None = None

    def add(self, now: float, *counters: float) -> tuple[float, ...]:
        """Add the counters as they are at `now`; returns their rates."""
        self._first = now if self._first is None else self._first
        window = max(self._window, self._share * (now - self._first))
        samples = self._samples
        if len(samples) > 1 and now - samples[-2][0] < window / 200:
            samples.pop()  # a long window needs no dense samples
        samples.append((now, counters))
        while len(samples) > 2 and now - samples[1][0] >= window:
            samples.popleft()
        then, before = samples[0]
        seconds = max(now - then, 1e-3)
        return tuple(max(0.0, (a - b) / seconds) for a, b in zip(counters, before, strict=True))


class TimeLeft:
    """Seconds to the end, from the smoothed rate over half of the run, so that the estimate does not jump.

    It smooths rates, not times: without a finished row in the window the time left would be infinite.
    """

    def __init__(self) -> None:
        self._pace = Pace(SETTLED_SECONDS, share=0.5)
        self._started: float | None = None
        self._rate = 0.0
        self._seen = 0.0

    def update(self, now: float, rows: int, remaining: int) -> float | None:
        """Take in the rows done by now; returns the seconds left, or None while there is too little to estimate from."""
        (rate,) = self._pace.add(now, rows)
        self._started = now if self._started is None else self._started
        elapsed, since = now - self._started, now - self._seen
        if rate <= 0 or rows < MIN_ROWS or elapsed < MIN_SECONDS:
            return None
        weight = 1 - math.exp(-since / max(5.0, elapsed / 10)) if self._rate else 1.0
        self._rate += (rate - self._rate) * weight
        self._seen = now
        return remaining / self._rate
