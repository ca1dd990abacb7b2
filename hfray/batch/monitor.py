"""One small actor per run that knows what each worker is doing: for progress, and to find the rows that kill workers."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hfray.batch.metrics import COUNTERS
from hfray.inference.stats import LoopStats

# A row among those in flight when a worker died is suspect. Suspects of one death run on as before; of two, in small
# groups; of three, alone; and a row that was alone at the fourth is the one to blame.
FATAL_DEATHS = 4
GROUP_SIZES = {2: 8, 3: 1, FATAL_DEATHS: 1}
MAX_FAILED_STARTS = 3  # in a row, of one worker, before the run is given up


@dataclass(slots=True)
class WorkerState:
    """A worker across the processes it has had."""

    pool: str = ""
    node: str = ""
    pid: int = 0
    ready: bool = False
    alive: bool = True
    start_seconds: float = 0.0
    ready_at: float = 0.0
    ready_seconds: float = 0.0  # of the processes that are gone
    deaths: int = 0
    failed_starts: int = 0
    failure: str | None = None
    in_flight: dict[str, list[str]] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)
    finished_rows: int = 0
    base: LoopStats = field(default_factory=LoopStats)  # of the processes that are gone
    stats: LoopStats = field(default_factory=LoopStats)
    seen: float = 0.0


class Monitor:
    """Workers report here; the driver looks once a second. Every call returns at once.

    Args:
        pending: rows that this run has to do.
    """

    def __init__(self, pending: int) -> None:
        self._left = pending  # rows that no worker has begun
        self._workers: dict[str, WorkerState] = {}
        self._suspects: Counter[str] = Counter()
        self._timeline: dict[str, float] = {}

    def starting(self, worker: str, node: str, pid: int, pool: str = "") -> None:
        """A worker's process begins; if it had one before, that one died with all that it had in flight."""
        state = self._workers.get(worker)
        if state is None:
            state = self._workers[worker] = WorkerState(pool=pool)
        elif state.alive:
            self._bury(state)
        state.node, state.pid, state.alive, state.seen = node, pid, True, time.time()
        self._timeline.setdefault("worker_process", time.time())

    def ready(self, worker: str, seconds: float, capacity: int) -> None:
        """A worker has its engine loaded."""
        state = self._workers[worker]
        state.ready, state.start_seconds, state.failed_starts, state.ready_at = True, seconds, 0, time.time()
        state.stats.capacity = capacity
        self._timeline.setdefault("engine_ready", time.time())

    def failed(self, worker: str, reason: str) -> None:
        """A worker cannot load its engine."""
        self._workers[worker].failure = reason

    def died(self, worker: str, pid: int) -> None:
        """A worker's process is gone, says who gave it rows and will give them to others now: these must know first."""
        state = self._workers[worker]
        if state.alive and state.pid == pid:  # else its next process has told already
            self._bury(state)
            state.alive = False

    def begin(self, worker: str, block: str, row_ids: list[str]) -> dict[str, int]:
        """A worker takes rows in; returns how many deaths each suspect among them has been at."""
        self._workers[worker].in_flight[block] = row_ids
        self._left -= len(row_ids)
        return {i: self._suspects[i] for i in row_ids if self._suspects.get(i)} if self._suspects else {}

    def run_alone(self, worker: str, row_ids: list[str]) -> None:
        """From now on only these rows are in the worker's engine; an empty list ends that."""
        self._workers[worker].alone = row_ids

    def finish(self, worker: str, block: str) -> None:
        """All rows of a block have their completion."""
        state = self._workers[worker]
        row_ids = state.in_flight.pop(block, [])
        state.finished_rows += len(row_ids)
        self._timeline["last_row"] = time.time()
        for row_id in row_ids if self._suspects else ():
            self._suspects.pop(row_id, None)

    def report(self, worker: str, stats: LoopStats) -> bool:
        """A worker's counters, once a second; returns whether the table is at its end: every row has been begun."""
        state = self._workers[worker]
        state.stats, state.seen = stats, time.time()
        if stats.rows:
            self._timeline.setdefault("first_row", time.time())
        if stats.last_full:
            self._timeline["last_full_step"] = max(stats.last_full, self._timeline.get("last_full_step", 0.0))
        return self._left <= 0

    def snapshot(self) -> dict[str, Any]:
        """Totals over all workers and processes; see the keys below."""
        workers = list(self._workers.values())
        totals: Counter[str] = Counter()
        for state in workers:
            for stats in (state.base, state.stats):
                totals.update({name: getattr(stats, name) for name in COUNTERS})
        now = [state.stats for state in workers if state.ready]
        return {
            "totals": dict(totals),
            "running": sum(stats.running for stats in now),
            "capacity": sum(stats.capacity for stats in now),
            "workers": len(workers),
            "workers_ready": len(now),
            "deaths": sum(state.deaths for state in workers),
            "timeline": dict(self._timeline),
            "cannot_start": next((w.failure for w in workers if w.failure), None),
            "per_worker": {
                name: {"pool": s.pool, "node": s.node, "rows": s.base.rows + s.stats.rows, "deaths": s.deaths,
                       "generated_tokens": s.base.generated_tokens + s.stats.generated_tokens,
                       "start_seconds": s.start_seconds}
                for name, s in self._workers.items()
            },
            "pools": {pool: self._pool(pool) for pool in sorted({s.pool for s in workers} - {""})},
        }  # fmt: skip

    def _pool(self, name: str) -> dict[str, Any]:
        """What the workers of a pool have done, and for which share of their time, since each was ready, they were busy.

        The time ends with the last row of all pools: a pool that was done earlier was idle for the rest.
        """
        states = [state for state in self._workers.values() if state.pool == name]
        counted = [stats for state in states for stats in (state.base, state.stats)]
        end = max([self._timeline.get("last_row", 0.0), *(state.ready_at for state in states)])
        ready = sum(state.ready_seconds + (end - state.ready_at if state.ready else 0.0) for state in states)
        busy = sum(stats.busy_seconds for stats in counted)
        fields = ("rows", "failed_rows", "prompt_tokens", "generated_tokens")
        return {
            "workers": len(states),
            "workers_ready": sum(state.ready for state in states),
            "deaths": sum(state.deaths for state in states),
            **{field: sum(getattr(stats, field) for stats in counted) for field in fields},
            "busy_seconds": busy,
            "ready_seconds": ready,
            "busy_share": min(1.0, busy / ready) if ready else None,
        }

    def _bury(self, state: WorkerState) -> None:
        state.deaths += 1
        state.failed_starts += not state.ready
        state.ready_seconds += max(0.0, state.seen - state.ready_at) if state.ready else 0.0
        state.ready = False
        if state.failed_starts >= MAX_FAILED_STARTS:
            state.failure = (
                f"a worker's process ended while it loaded the model, {state.failed_starts} times in a row "
                f"(node {state.node}). Its memory may be too small for the model; see Ray's logs of that node"
            )
        self._left += sum(map(len, state.in_flight.values()))
        blamed = state.alone or [row_id for rows in state.in_flight.values() for row_id in rows]
        self._suspects.update(blamed)
        gone = state.stats
        gone.rows = state.finished_rows - state.base.rows  # rows of unfinished blocks are done again
        for name in COUNTERS:
            setattr(state.base, name, getattr(state.base, name) + getattr(gone, name))
        state.stats, state.in_flight, state.alone = LoopStats(), {}, []
