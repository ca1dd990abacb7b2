"""Runs in simulated time: the real engine loop, the real Monitor and the fake engine, one step at a time.

Every step takes `step_seconds` plus `token_seconds` for each token that it processes, on a clock of the simulation. So a
run of minutes takes a moment, and every repetition gives the same counters.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Sequence

from hfray.batch.monitor import Monitor
from hfray.completion import Prompt
from hfray.engines.base import StepOutput
from hfray.engines.fake import FakeEngine
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from hfray.runs.snapshot import Snapshot

STARTS = 8  # rows that start in one step: engines limit the prompt tokens of a step
BLOCK = 16  # rows in a worker beyond its engine's capacity
FAIL = "fail"


class SteppedEngine(FakeEngine):
    """A fake engine that steps when it is told to. A prompt begins with the length of its answer."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity=capacity, tokens_per_step=1, fail_on=FAIL)
        self.go = threading.Semaphore(0)

    def step(self) -> list[StepOutput]:
        assert self.go.acquire(timeout=60)
        capacity = self.capacity
        self.capacity = min(capacity, len(self._running) + STARTS)
        try:
            return super().step()
        finally:
            self.capacity = capacity

    def _write(self, request):
        length = int(bytes(request.prompt_ids).split()[0])
        return b"a" * min(length, request.max_new_tokens)


def simulate(
    lengths: Sequence[int],
    limit: int,
    capacity: int,
    *,
    failed: float = 0.0,
    prompt_tokens: int = 100,
    step_seconds: float = 0.2,
    token_seconds: float = 0.0,
) -> list[tuple[float, Snapshot, int]]:
    """Run one row for each length; returns (seconds, snapshot, rows without an answer), one each second, to the end.

    Args:
        failed: share of the rows that fail in the engine.
    """
    engine, monitor = SteppedEngine(capacity), Monitor(len(lengths))
    loop, params = EngineLoop(engine), GenerationParams(max_new_tokens=limit, temperature=0)
    fails = [int((i + 1) * failed) > int(i * failed) for i in range(len(lengths))]
    waiting = deque(
        f"{length} row {i} {FAIL if fails[i] else ''}".ljust(prompt_tokens) for i, length in enumerate(lengths)
    )
    monitor.starting("w", "node", 1)
    monitor.ready("w", 1.0, capacity, "fp32")
    turned = threading.Event()

    def turn() -> None:
        """Between two steps, on the loop's thread: the engine gets more rows."""
        while waiting and engine.num_unfinished < capacity + BLOCK:
            loop.submit(Prompt(waiting.popleft()), params)
            loop._drain()
        turned.set()

    now, told, course, counted = 0.0, -1.0, [], 0
    while loop.stats.rows < len(lengths):
        turned.clear()
        loop._post(turn)
        if engine.num_unfinished:
            engine.go.release()
        assert turned.wait(60)
        work = loop.stats.prompt_tokens + loop.stats.generated_tokens
        now += step_seconds + token_seconds * (work - counted)
        counted = work
        if now - told >= 1 or loop.stats.rows == len(lengths):
            told = now
            monitor.report("w", copy.deepcopy(loop.stats))
            course.append((now, monitor.snapshot(), len(lengths) - loop.stats.rows))
    loop.close()
    return course
