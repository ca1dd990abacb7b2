"""The speed of a run."""

from __future__ import annotations

from collections import deque


class Pace:
    """Counters over time, and their rates over a window.

    Args:
        window: seconds.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque()

    def add(self, now: float, *counters: float) -> tuple[float, ...]:
        """Add the counters as they are at `now`; returns their rates."""
        window, samples = self._window, self._samples
        if len(samples) > 1 and now - samples[-2][0] < window / 200:
            samples.pop()  # a long window needs no dense samples
        samples.append((now, counters))
        while len(samples) > 2 and now - samples[1][0] >= window:
            samples.popleft()
        then, before = samples[0]
        seconds = max(now - then, 1e-3)
        return tuple(max(0.0, (a - b) / seconds) for a, b in zip(counters, before, strict=True))
