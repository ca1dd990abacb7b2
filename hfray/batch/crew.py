"""Several pools of workers at one table: each is given blocks as it has room for them, until none is left.

Ray Data reads the table. One stage of it has one kind of worker, so the workers here are actors of our own, and the
driver keeps the book of which block is with whom. Workers ask for blocks: one that is slow, or a pool that waits for
its nodes, holds no row back. What a dead worker had goes to the next that asks, of whatever pool; at the end, what a
slow one still has goes to an idle one too. Of a block one answer is taken, so that each row is written once.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
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

from hfray.batch.dataset import TICK_SECONDS, Block, arriving
from hfray.batch.worker import BatchWorker
from hfray.cluster.pools import Pool

if TYPE_CHECKING:
    from hfray.batch.writer import Writer


MAX_BLOCK = 64  # rows: what the slowest worker is left with at the end is a few of these
MAX_CALLS = 32  # blocks with a worker; rows that take long keep theirs open
AHEAD = 16  # blocks read and not given out, at least
READ_CPUS = 4  # Ray Data thinks that the cluster is its own, and would have it grow for its tasks
# A worker is started again for as long as it takes; a block that it had is the driver's, to give to another.
RESTARTS = {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": MAX_CALLS + 2}
POLL_SECONDS = 0.02  # between looks at workers while it is the reader that is waited for
BACKUP_SECONDS = 10.0  # a block that is out for longer when all else is done is given to an idle worker as well
APPETITE_SECONDS = 0.01  # between a worker's looks at its own engine


class PoolWorker:
    """A BatchWorker as an actor of its own, that asks for blocks when its engine is about to run out of rows.

    Args:
        size: rows in a block.
        args: BatchWorker's.
    """

    def __init__(self, size: int, *args: Any) -> None:
        self._size = size
        self._worker = BatchWorker(*args)
        self._taken = self._returned = self._blocks = 0
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def ask(self, given: int, pid: int) -> tuple[int, int]:
        """Waits until there is room; returns the process and how many blocks it can do with.

        There is room while the rows that are not answered would not fill the engine and one block beside it: more would
        only wait here, when others might take them.

        Args:
            given: rows sent to this process so far; those still on their way count too.
            pid: the process that they were sent to, 0 where none was known. To another it is said at once which this is.
        """
        if pid not in (0, os.getpid()):
            return os.getpid(), 0
        while True:
            with self._lock:
                unanswered = given - self._returned - self._worker.answered_rows
                blocks = min(
                    self._worker.capacity // self._size + 2 - -(-unanswered // self._size), MAX_CALLS - self._blocks
                )
            if blocks > 0 and self._worker.capacity:
                return os.getpid(), blocks
            time.sleep(APPETITE_SECONDS)

    def answer(self, block: pa.Table) -> tuple[pa.Table, int]:
        """The output rows of a block, and how many they are."""
        with self._lock:
            self._blocks += 1
        answered = asyncio.run_coroutine_threadsafe(self._worker(block), self._loop).result()
        with self._lock:
            self._blocks -= 1
            self._returned += block.num_rows
        return answered, answered.num_rows


@dataclass(slots=True, eq=False)
class Member:
    """A worker and the blocks that it has, by the reference that tells of their end.

    `wants` is how many more it can do with; while that is 0, `ask` is under way.
    """

    pool: Pool
    actor: Any
    name: str
    up: bool = False
    pid: int = 0
    wants: int = 0
    given: int = 0
    calls: dict[Any, tuple[Any, Block]] = field(default_factory=dict)


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
            if not (reading or waiting):
                crew.back_up()
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
        self._asks: dict[Any, Member] = {}
        self._calls: dict[Any, Member] = {}
        self._out: dict[Any, tuple[Block, float]] = {}  # by their reference: blocks that are not answered, since when
        self._doubled: set[Any] = set()

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
        """Whether any block that was given out is not answered."""
        return bool(self._out)

    def hand_out(self, waiting: deque[Block]) -> None:
        """Give blocks to workers that want some, the emptiest first; pools grow while any are left."""
        number = itertools.count()
        hungry = [(len(member.calls), next(number), member) for member in self.members if member.wants]
        heapq.heapify(hungry)
        while waiting and hungry:
            member = heapq.heappop(hungry)[2]
            self._give(member, waiting.popleft())
            if member.wants:
                heapq.heappush(hungry, (len(member.calls), next(number), member))
        for pool in self._pools if waiting else ():
            self._grow(pool)

    def back_up(self) -> None:
        """Give what others still have to idle workers too, once nothing waits: the first answer counts, and ends it."""
        idle = [member for member in self.members if member.wants and not member.calls]
        overdue = time.monotonic() - BACKUP_SECONDS
        late = [block for ref, (block, since) in self._out.items() if since < overdue and ref not in self._doubled]
        while late and idle:  # the last given first: it is the likeliest to have waited so far
            block = late.pop()
            self._doubled.add(block.ref)
            self._give(idle[0], block)
            idle = idle if idle[0].wants else idle[1:]

    def collect(self, timeout: float) -> list[Block]:
        """The blocks that were answered meanwhile; waits for one, a worker that wants some, or the timeout."""
        known = [*self._asks, *self._calls]
        if not known:
            time.sleep(timeout)
            return []
        first, _ = ray.wait(known, timeout=timeout, fetch_local=False)
        ready, _ = ray.wait(known, num_returns=len(known), timeout=0, fetch_local=False) if first else ([], [])
        found = [self._look_at(ref) for ref in ready]
        return [block for block in found if block is not None]

    def _look_at(self, ref: Any) -> Block | None:
        member = self._asks.get(ref) or self._calls.get(ref)
        if member is None:
            return None  # of a worker that has died, as another of its calls has told
        try:
            result = ray.get(ref)
        except ray.exceptions.RayActorError:
            self._bury(member)
            return None
        if ref in self._asks:
            del self._asks[ref]
            if member.up and result[0] != member.pid:  # the one before died with nothing to do, and no call told of it
                member.given = sum(block.num_rows for _, block in member.calls.values())
            member.up, (member.pid, member.wants) = True, result
            if not member.wants:
                self._ask(member)
            return None
        del self._calls[ref]
        answer, block = member.calls.pop(ref)
        if self._out.pop(block.ref, None) is None:
            return None  # the other one was first
        self._doubled.discard(block.ref)
        if result != block.num_rows:
            raise RuntimeError(f"{block.num_rows} rows went to a worker, and {result} came back")
        return Block(answer, block.num_rows, source=block)

    def _give(self, member: Member, block: Block) -> None:
        answer, done = member.actor.answer.options(num_returns=2).remote(block.ref)
        member.calls[done] = (answer, block)
        self._calls[done] = member
        self._out.setdefault(block.ref, (block, time.monotonic()))
        member.given += block.num_rows
        member.wants -= 1
        if not member.wants:
            self._ask(member)

    def _ask(self, member: Member) -> None:
        self._asks[member.actor.ask.remote(member.given, member.pid)] = member

    def _bury(self, member: Member) -> None:
        """Take a dead worker's blocks back; Ray starts its next process, wherever one fits."""
        if member.up:
            ray.get(self._monitor.died.remote(member.name, member.pid))
        for _, block in member.calls.values():
            if block.ref in self._doubled:
                self._doubled.discard(block.ref)  # the other one has it still
            elif self._out.pop(block.ref, None) is not None:
                self.returned.append(block)
        for ref in [*member.calls, *(ask for ask, asker in self._asks.items() if asker is member)]:
            (self._calls if ref in self._calls else self._asks).pop(ref)
        member.calls.clear()
        self._greet(member)

    def _start(self, pool: Pool, number: int) -> None:
        for _ in range(number):
            args = (self._size, pool.settings, pool.folder, pool.threads, self._monitor, pool.name)
            actor = self._actor.options(**RESTARTS, **pool.booking).remote(*args)
            member = Member(pool, actor, actor._actor_id.hex())
            self.members.append(member)
            self._greet(member)

    def _greet(self, member: Member) -> None:
        """Ask a process that is to come: the first question is repeated until there is one that answers."""
        member.up, member.wants, member.given = False, 0, 0
        self._asks[member.actor.ask.options(max_task_retries=-1).remote(0, 0)] = member

    def _grow(self, pool: Pool) -> None:
        """As many workers again as a pool has, where all of these are up, and full, since blocks wait."""
        mine = [member for member in self.members if member.pool is pool]
        if all(member.up for member in mine):
            self._start(pool, min(len(mine), pool.settings.workers.bounds[1] - len(mine)))
