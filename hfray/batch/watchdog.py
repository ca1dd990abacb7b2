"""Reports a worker's progress every second, and ends the process of an engine that hangs.

Some engines hold Python's lock during their steps. The watchdog's thread then gets the lock so rarely that its reports
can be many seconds old. So the engine loop's own thread reports too, between two steps.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable
from typing import Protocol

from hfray.errors import EngineDiedError
from hfray.inference.stats import LoopStats

HEARTBEAT_SECONDS = 1.0
# Seconds beyond workers.step_timeout after which the native watch ends the process. By then the heartbeat has ended
# every process that can still run Python.
FREEZE_MARGIN = 5.0


class WatchedLoop(Protocol):
    """The part of an EngineLoop that the watchdog uses."""

    @property
    def stats(self) -> LoopStats: ...

    def stalled_for(self) -> float: ...

    def expect_end(self) -> None: ...


class Reporter:
    """Reports from the engine loop's thread, at most once in HEARTBEAT_SECONDS.

    Args:
        report: sends the counters to the Monitor, and does not wait.
        update_metrics: exports the counters.
        clock: gives the seconds; tests pass their own.
    """

    def __init__(
        self,
        loop: WatchedLoop,
        report: Callable[[LoopStats], object],
        update_metrics: Callable[[LoopStats], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop, self._report, self._update_metrics, self._clock = loop, report, update_metrics, clock
        self._last = clock()

    def after_step(self) -> None:
        """Report if the last report is old enough."""
        now = self._clock()
        if now - self._last >= HEARTBEAT_SECONDS:
            self._last = now
            self._report(self._loop.stats)
            self._update_metrics(self._loop.stats)


class Watchdog:
    """Watches the engine loop of one worker process.

    Args:
        report: sends the counters to the Monitor; returns whether every row of the table has been begun.
        update_metrics: exports the counters.
        step_timeout: seconds without a step of the engine after which the process must end (workers.step_timeout).
        end_process: ends this process; Ray starts another and repeats its calls.
    """

    def __init__(
        self,
        loop: WatchedLoop,
        report: Callable[[LoopStats], bool],
        update_metrics: Callable[[LoopStats], None],
        step_timeout: float,
        end_process: Callable[[EngineDiedError], None],
    ) -> None:
        self._loop, self._report, self._update_metrics = loop, report, update_metrics
        self._step_timeout, self._end_process = step_timeout, end_process

    def start(self) -> None:
        """Watch from two threads until the process ends."""
        threading.Thread(target=self._watch, daemon=True).start()
        threading.Thread(target=_end_if_frozen, args=(self._step_timeout + FREEZE_MARGIN,), daemon=True).start()

    def beat(self) -> None:
        """Report once, and end the process if the engine hangs."""
        self._update_metrics(self._loop.stats)
        if self._report(self._loop.stats):
            self._loop.expect_end()
        if self._loop.stalled_for() > self._step_timeout:
            self._end_process(EngineDiedError(f"no step for {self._step_timeout:.0f} s (workers.step_timeout)"))

    def _watch(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            self.beat()


def _end_if_frozen(timeout: float) -> None:
    """End the process if native code holds Python's lock for `timeout` seconds, so that no Python thread can run."""
    while True:
        # faulthandler watches from native code, which needs no lock. Every call restarts its timer.
        faulthandler.dump_traceback_later(timeout, exit=True, file=2)
        time.sleep(HEARTBEAT_SECONDS)
