"""The bookkeeping of the pools' dispatcher: which worker has which block. No Ray calls, no I/O, no clock.

A worker process is STARTING until it reports that it is ready, then IDLE while it has no block and BUSY while it has
some. When a process dies, its blocks go back to the front of the queue, and its worker is STARTING again, because Ray
restarts the process. A worker grants credits: the number of blocks that it can take now.

A block is queued, or out with one worker. A block that is out for long at the end of a run also goes to an idle worker
as a speculative copy. The first answer of a block completes the block; the scheduler rejects every later answer.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

COPY_SECONDS = 10.0  # a block that is out for longer may get a speculative copy once nothing is queued


class HasRows(Protocol):
    """A block: `ref` identifies the block."""

    @property
    def ref(self) -> Hashable: ...

    @property
    def num_rows(self) -> int: ...


B = TypeVar("B", bound=HasRows)


class WorkerState(enum.Enum):
    """What a worker process does."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(slots=True, eq=False)
class WorkerSlot(Generic[B]):
    """A worker across all its processes.

    `pid` is the current process, 0 while it starts. `sent_rows` counts the rows sent to that process.
    """

    name: str
    pool: str
    pid: int = 0
    credits: int = 0
    sent_rows: int = 0
    blocks: list[B] = field(default_factory=list)

    @property
    def state(self) -> WorkerState:
        if not self.pid:
            return WorkerState.STARTING
        return WorkerState.BUSY if self.blocks else WorkerState.IDLE


class Assignment(NamedTuple, Generic[B]):
    """A block that the caller must send to a worker."""

    worker: WorkerSlot[B]
    block: B


@dataclass(slots=True, eq=False)
class _Out(Generic[B]):
    """A block that is out, with its worker and, after a speculative copy, a second one."""

    block: B
    since: float
    workers: list[WorkerSlot[B]]


class Scheduler(Generic[B]):
    """Assigns queued blocks to the workers of all pools."""

    def __init__(self) -> None:
        self.workers: list[WorkerSlot[B]] = []
        self.queued: deque[B] = deque()
        self._out: dict[Hashable, _Out[B]] = {}

    @property
    def has_work(self) -> bool:
        """Whether any block is queued or out."""
        return bool(self.queued or self._out)

    # --- blocks ------------------------------------------------------------------------------------------------

    def add(self, blocks: Iterable[B]) -> None:
        """Queue new blocks."""
        self.queued.extend(blocks)

    def requeue(self, blocks: Iterable[B]) -> None:
        """Queue blocks with lost answers; workers get these first."""
        self.queued.extendleft(blocks)

    def dispatch(self, now: float) -> list[Assignment[B]]:
        """Assign queued blocks to workers with credits, one block at a time to the worker with the fewest blocks."""
        ready = [(len(worker.blocks), n, worker) for n, worker in enumerate(self.workers) if worker.credits]
        heapq.heapify(ready)
        assigned = []
        while self.queued and ready:
            _, number, worker = heapq.heappop(ready)
            assigned.append(self._assign(worker, self.queued.popleft(), now))
            if worker.credits:
                heapq.heappush(ready, (len(worker.blocks), number, worker))
        return assigned

    def copy_stragglers(self, now: float) -> list[Assignment[B]]:
        """Assign speculative copies of blocks that are out for COPY_SECONDS to idle workers, once nothing is queued.

        The block that went out last is copied first: it is the most likely not to have been started.
        """
        if self.queued:
            return []
        idle = [worker for worker in self.workers if worker.credits and worker.state is WorkerState.IDLE]
        late = [out for out in self._out.values() if now - out.since > COPY_SECONDS and len(out.workers) == 1]
        assigned = []
        while late and idle:
            assigned.append(self._assign(idle[0], late.pop().block, now))
            if not idle[0].credits:
                del idle[0]
        return assigned

    def completed(self, worker: WorkerSlot[B], block: B) -> bool:
        """A worker answered a block; returns whether the answer counts, which is true for the first answer only."""
        _remove(worker.blocks, block)
        return self._out.pop(block.ref, None) is not None

    # --- workers -----------------------------------------------------------------------------------------------

    def add_worker(self, name: str, pool: str) -> WorkerSlot[B]:
        """Add a worker; its first process is starting."""
        worker: WorkerSlot[B] = WorkerSlot(name, pool)
        self.workers.append(worker)
        return worker

    def grant(self, worker: WorkerSlot[B], pid: int, credits: int) -> None:
        """A worker process is ready to take `credits` blocks."""
        if worker.pid and pid != worker.pid:
            # The previous process died while it had no block, so no call failed. The blocks in transit go to the new
            # process.
            worker.sent_rows = sum(block.num_rows for block in worker.blocks)
        worker.pid, worker.credits = pid, credits

    def died(self, worker: WorkerSlot[B]) -> None:
        """A worker process died: requeue its blocks, except those that another worker still has."""
        for block in worker.blocks:
            out = self._out.get(block.ref)
            if out is None or worker not in out.workers:
                continue  # another worker answered the block already
            out.workers.remove(worker)
            if not out.workers:
                del self._out[block.ref]
                self.queued.appendleft(block)
        worker.pid = worker.credits = worker.sent_rows = 0
        worker.blocks.clear()

    def is_saturated(self, pool: str) -> bool:
        """Whether blocks are queued although every worker of the pool is up."""
        return bool(self.queued) and all(
            worker.state is not WorkerState.STARTING for worker in self.workers if worker.pool == pool
        )

    def size_of(self, pool: str) -> int:
        """Workers of a pool, starting ones included."""
        return sum(worker.pool == pool for worker in self.workers)

    def _assign(self, worker: WorkerSlot[B], block: B, now: float) -> Assignment[B]:
        out = self._out.setdefault(block.ref, _Out(block, now, []))
        out.workers.append(worker)
        worker.blocks.append(block)
        worker.credits -= 1
        worker.sent_rows += block.num_rows
        return Assignment(worker, block)


def _remove(blocks: list[B], block: B) -> None:
    for number, other in enumerate(blocks):
        if other.ref == block.ref:
            del blocks[number]
            return
