"""One actor per run that tracks all workers: for the progress display, and to find rows that kill workers."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from hfray.inference.stats import LoopStats
from hfray.runs.buckets import empty_buckets
from hfray.runs.snapshot import PoolCounts, Snapshot, Totals, WorkerCounts

MAX_FAILED_STARTS = 3  # of one worker, in a row; then the run ends


@dataclass(slots=True)
class WorkerState:
    """A worker. `base`, `base_lengths` and `ready_seconds` cover its dead processes, `stats` covers its current
    process."""

    pool: str = ""
    node: str = ""
    pid: int = 0
    ready: bool = False
    alive: bool = True
    start_seconds: float = 0.0
    precision: str = ""
    ready_at: float = 0.0
    ready_seconds: float = 0.0
    deaths: int = 0
    failed_starts: int = 0
    failure: str | None = None
    unusable: bool = False
    in_flight: dict[str, list[str]] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)
    finished_rows: int = 0
    base: Totals = field(default_factory=Totals)
    base_lengths: list[int] = field(default_factory=empty_buckets)
    stats: LoopStats = field(default_factory=LoopStats)
    seen: float = 0.0

    def counts(self) -> Totals:
        """The counters of all its processes."""
        totals = Totals()
        totals.add(self.base)
        totals.add(self.stats)
        return totals

    def answer_lengths(self) -> list[list[int]]:
        """The lengths of the answers of all its processes."""
        return [self.base_lengths, self.stats.answer_lengths]


class Monitor:
    """Workers report here, and the driver takes a snapshot once a second. Every call returns at once.

    Args:
        pending: rows that this run has to do.
    """

    def __init__(self, pending: int) -> None:
        self._left = pending  # rows that no worker has taken
        self._workers: dict[str, WorkerState] = {}
        self._suspects: Counter[str] = Counter()
        self._timeline: dict[str, float] = {}

    def starting(self, worker: str, node: str, pid: int, pool: str = "") -> None:
        """A process of a worker starts. An earlier process of the same worker is dead, with all its rows in flight."""
        state = self._workers.get(worker)
        if state is None:
            state = self._workers[worker] = WorkerState(pool=pool)
        elif state.alive:
            self._record_death(state)
        state.node, state.pid, state.alive, state.seen = node, pid, True, time.time()
        self._timeline.setdefault("worker_process", time.time())

    def ready(self, worker: str, seconds: float, capacity: int, precision: str) -> None:
        """A worker has loaded its engine."""
        state = self._workers[worker]
        state.precision = precision
        state.ready, state.start_seconds, state.failed_starts, state.ready_at = True, seconds, 0, time.time()
        state.stats.capacity = capacity
        self._timeline.setdefault("engine_ready", time.time())

    def failed(self, worker: str, reason: str, unusable: bool = False) -> None:
        """A worker cannot load its engine; `unusable` says that the settings are the cause."""
        state = self._workers[worker]
        state.failure, state.unusable = reason, unusable

    def died(self, worker: str, pid: int) -> None:
        """The driver saw a worker's process die. It reports this before it requeues the rows, so suspects are known."""
        state = self._workers[worker]
        if state.alive and state.pid == pid:  # otherwise the next process has reported the death already
            self._record_death(state)
            state.alive = False

    def begin(self, worker: str, block: str, row_ids: list[str]) -> dict[str, int]:
        """A worker takes a block of rows; returns the number of deaths of each suspect among them."""
        self._workers[worker].in_flight[block] = row_ids
        self._left -= len(row_ids)
        return {i: self._suspects[i] for i in row_ids if self._suspects.get(i)} if self._suspects else {}

    def run_alone(self, worker: str, row_ids: list[str]) -> None:
        """From now on only these rows are in the worker's engine; an empty list ends this."""
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
        """A worker's counters, once a second; returns whether every row of the table has been taken."""
        state = self._workers[worker]
        state.stats, state.seen = stats, time.time()
        if stats.rows:
            self._timeline.setdefault("first_row", time.time())
        if stats.last_full:
            self._timeline["last_full_step"] = max(stats.last_full, self._timeline.get("last_full_step", 0.0))
        return self._left <= 0

    def snapshot(self) -> Snapshot:
        """All workers at this moment."""
        workers = list(self._workers.values())
        totals = Totals()
        for state in workers:
            totals.add(state.counts())
        now = [state.stats for state in workers if state.ready]
        failed = next((state for state in workers if state.failure), None)
        return Snapshot(
            totals=totals,
            running=sum(stats.running for stats in now),
            capacity=sum(stats.capacity for stats in now),
            workers=len(workers),
            workers_ready=len(now),
            deaths=sum(state.deaths for state in workers),
            max_new_tokens=max((state.stats.max_new_tokens for state in workers), default=0),
            running_lengths=_summed([stats.running_lengths for stats in now]),
            answer_lengths=_summed([lengths for state in workers for lengths in state.answer_lengths()]),
            timeline=dict(self._timeline),
            cannot_start=failed.failure if failed else None,
            unusable=failed.unusable if failed else False,
            per_worker={name: _worker_counts(state) for name, state in self._workers.items()},
            pools={pool: self._pool_counts(pool) for pool in sorted({state.pool for state in workers} - {""})},
        )

    def _pool_counts(self, name: str) -> PoolCounts:
        """The counts of a pool.

        The ready time of every pool ends with the last row of all pools: a pool that finished earlier was idle then.
        """
        states = [state for state in self._workers.values() if state.pool == name]
        totals = Totals()
        for state in states:
            totals.add(state.counts())
        end = max([self._timeline.get("last_row", 0.0), *(state.ready_at for state in states)])
        ready = sum(state.ready_seconds + (end - state.ready_at if state.ready else 0.0) for state in states)
        return PoolCounts(
            workers=len(states),
            workers_ready=sum(state.ready for state in states),
            deaths=sum(state.deaths for state in states),
            rows=totals.rows,
            failed_rows=totals.failed_rows,
            prompt_tokens=totals.prompt_tokens,
            generated_tokens=totals.generated_tokens,
            busy_seconds=totals.busy_seconds,
            ready_seconds=ready,
            busy_share=min(1.0, totals.busy_seconds / ready) if ready else None,
        )

    def _record_death(self, state: WorkerState) -> None:
        state.deaths += 1
        state.failed_starts += not state.ready
        state.ready_seconds += max(0.0, state.seen - state.ready_at) if state.ready else 0.0
        state.ready = False
        if state.failed_starts >= MAX_FAILED_STARTS:
            state.failure = (
                f"a worker's process ended while it loaded the model, {state.failed_starts} times in a row "
                f"(node {state.node}). The node may have too little memory for the model; see Ray's logs of that node"
            )
        self._left += sum(map(len, state.in_flight.values()))
        suspects = state.alone or [row_id for rows in state.in_flight.values() for row_id in rows]
        self._suspects.update(suspects)
        state.stats.rows = state.finished_rows - state.base.rows  # rows of unfinished blocks are done again
        state.base.add(state.stats)
        state.base_lengths = _summed(state.answer_lengths())
        state.stats, state.in_flight, state.alone = LoopStats(), {}, []


def _summed(counts: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(empty_buckets(), *counts, strict=True)]


def _worker_counts(state: WorkerState) -> WorkerCounts:
    counts = state.counts()
    return WorkerCounts(
        pool=state.pool,
        node=state.node,
        rows=counts.rows,
        generated_tokens=counts.generated_tokens,
        deaths=state.deaths,
        start_seconds=state.start_seconds,
        precision=state.precision,
    )
