"""Several pools of workers at one table: each is given blocks as it has room for them, until none is left.

Ray Data reads the table. One stage of it has one kind of worker, so the workers here are actors of our own, and the
driver keeps the book of which block is with whom. Only a worker that is up is given any: a pool that waits for its
nodes holds no row back. What a dead worker had goes to the next that has room, of whatever pool. So a row is with one
worker at a time, and is written once.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import ExecutionResources

from hfray.blocks import TICK_SECONDS, Block, arriving
from hfray.cluster import Pool
from hfray.worker import BatchWorker

if TYPE_CHECKING:
    from hfray.pipeline import Writer

MAX_BLOCK = 64  # rows: what the slowest worker is left with at the end is a few of these
ROWS_PER_SLOT = 3  # rows with a worker for each that its engine runs at once: a block waits for its slowest row
MIN_CALLS, MAX_CALLS = 2, 16  # blocks with a worker
AHEAD = 16  # blocks read and not given out, at least
READ_CPUS = 4  # Ray Data thinks that the cluster is its own, and would have it grow for its tasks
# A worker is started again for as long as it takes; a block that it had is the driver's, to give to another.
RESTARTS = {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": MAX_CALLS + 1}
POLL_SECONDS = 0.02  # between looks at workers while it is the reader that is waited for


class PoolWorker:
    """A BatchWorker as an actor of its own."""

    def __init__(self, *args: Any) -> None:
        self._worker = BatchWorker(*args)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def hello(self) -> tuple[int, int]:
        """Its process and how many rows its engine runs at once, 0 where it could not be loaded."""
        return os.getpid(), self._worker.capacity

    def answer(self, block: pa.Table) -> tuple[pa.Table, int]:
        """The output rows of a block, and how many they are."""
        answered = asyncio.run_coroutine_threadsafe(self._worker(block), self._loop).result()
        return answered, answered.num_rows


@dataclass(slots=True, eq=False)
class Member:
    """A worker and the blocks that it has, by the reference that tells of their end; `room` 0 while it is not up."""

    pool: Pool
    actor: Any
    name: str
    hello: Any
    pid: int = 0
    room: int = 0
    calls: dict[Any, tuple[Any, Block]] = field(default_factory=dict)

    @property
    def load(self) -> float:
        """Share of its room that is taken."""
        return len(self.calls) / self.room if self.room else 1.0


def answers(
    pools: Sequence[Pool], rows: ray.data.Dataset, size: int, monitor: Any, writer: Writer
) -> Iterator[Block | None]:
    """The blocks of `rows` answered by the workers of all pools, as they come, and None every so often.

    Ends when the writer has written them all: what was lost before that is answered again.

    Args:
        size: rows in a block.
    """
    waiting: deque[Block] = deque()
    reading = True
    with _limited(rows), arriving(rows) as arrived, Crew(pools, size, monitor) as crew:
        while True:
            reading = reading and _take(arrived, waiting, max(AHEAD, 2 * len(crew.members)))
            waiting.extendleft(writer.lost)
            writer.lost.clear()
            crew.hand_out(waiting)
            starved = not waiting and (reading or not crew.busy)
            yield from crew.collect(POLL_SECONDS if starved else TICK_SECONDS)
            yield None
            waiting.extendleft(crew.returned)
            crew.returned.clear()
            if not (reading or waiting or crew.busy) and writer.settle(TICK_SECONDS):
                return


def _take(arrived: queue.Queue[Any], waiting: deque[Block], enough: int) -> bool:
    """Move blocks that were read to those that wait; returns whether more will come."""
    while len(waiting) < enough:
        try:
            item = arrived.get_nowait()
        except queue.Empty:
            return True
        if item is None:
            return False
        if isinstance(item, BaseException):
            raise item
        if item.num_rows:
            waiting.append(item)
    return True


@contextlib.contextmanager
def _limited(rows: ray.data.Dataset) -> Iterator[None]:
    """Hold Ray Data to READ_CPUS: it does not know of the CPUs that the workers book."""
    options = rows.context.execution_options
    before = options.resource_limits
    options.resource_limits = ExecutionResources(cpu=READ_CPUS)
    try:
        yield
    finally:
        options.resource_limits = before


class Crew:
    """The workers of all pools. As a context; left, it ends them.

    `returned` holds the blocks of workers that have died, to be given out again.
    """

    def __init__(self, pools: Sequence[Pool], size: int, monitor: Any) -> None:
        self.members: list[Member] = []
        self.returned: list[Block] = []
        self._pools, self._size, self._monitor = pools, size, monitor
        self._actor = ray.remote(PoolWorker)
        self._starting: dict[Any, Member] = {}
        self._calls: dict[Any, Member] = {}

    def __enter__(self) -> Crew:
        for pool in self._pools:
            self._start(pool, pool.settings.workers.bounds[0])
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            with contextlib.suppress(Exception):  # it may be gone already, and Ray too
                ray.kill(member.actor)

    @property
    def busy(self) -> bool:
        """Whether any worker has a block."""
        return bool(self._calls)

    def hand_out(self, waiting: deque[Block]) -> None:
        """Give blocks to workers that have room, the emptiest first; pools that are full grow while any are left."""
        number = itertools.count()
        free = [(member.load, next(number), member) for member in self.members if member.load < 1]
        heapq.heapify(free)
        while waiting and free:
            member = heapq.heappop(free)[2]
            block = waiting.popleft()
            answer, done = member.actor.answer.options(num_returns=2).remote(block.ref)
            member.calls[done] = (answer, block)
            self._calls[done] = member
            if member.load < 1:
                heapq.heappush(free, (member.load, next(number), member))
        for pool in self._pools if waiting else ():
            self._grow(pool)

    def collect(self, timeout: float) -> list[Block]:
        """The blocks that were answered meanwhile; waits for one, a worker that is up, or the timeout."""
        known = [*self._starting, *self._calls]
        if not known:
            time.sleep(timeout)
            return []
        first, _ = ray.wait(known, timeout=timeout, fetch_local=False)
        ready, _ = ray.wait(known, num_returns=len(known), timeout=0, fetch_local=False) if first else ([], [])
        found = [self._answered(ref) if ref in self._calls else self._up(ref) for ref in ready]
        return [block for block in found if block is not None]

    def _up(self, hello: Any) -> None:
        """A worker is there: from now on it is given blocks."""
        member = self._starting.pop(hello, None)
        if member is not None:
            member.pid, capacity = ray.get(hello)
            calls = math.ceil(ROWS_PER_SLOT * capacity / self._size)
            member.room = min(max(calls, MIN_CALLS), MAX_CALLS) if capacity else 0

    def _answered(self, done: Any) -> Block | None:
        member = self._calls[done]
        try:
            num_rows = ray.get(done)
        except ray.exceptions.RayActorError:
            self._bury(member)
            return None
        del self._calls[done]
        answer, block = member.calls.pop(done)
        if num_rows != block.num_rows:
            raise RuntimeError(f"{block.num_rows} rows went to a worker, and {num_rows} came back")
        return Block(answer, num_rows, source=block)

    def _bury(self, member: Member) -> None:
        """Take a dead worker's blocks back; Ray starts its next process, wherever one fits."""
        ray.get(self._monitor.died.remote(member.name, member.pid))
        for done, (_, block) in member.calls.items():
            del self._calls[done]
            self.returned.append(block)
        member.calls.clear()
        member.room = 0
        self._greet(member)

    def _start(self, pool: Pool, number: int) -> None:
        for _ in range(number):
            args = (pool.settings, pool.folder, pool.threads, self._monitor, pool.name)
            actor = self._actor.options(**RESTARTS, **pool.booking).remote(*args)
            member = Member(pool, actor, actor._actor_id.hex(), None)
            self.members.append(member)
            self._greet(member)

    def _greet(self, member: Member) -> None:
        member.hello = member.actor.hello.options(max_task_retries=-1).remote()
        self._starting[member.hello] = member

    def _grow(self, pool: Pool) -> None:
        """As many workers again as a pool has, where all of these are up and full."""
        mine = [member for member in self.members if member.pool is pool]
        if all(member.room and member.load >= 1 for member in mine):
            self._start(pool, min(len(mine), pool.settings.workers.bounds[1] - len(mine)))
