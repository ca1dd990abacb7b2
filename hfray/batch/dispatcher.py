"""Several pools of workers on one table: every worker gets blocks whenever it has room, until no block is left.

Ray Data reads the table. One stage of Ray Data has one kind of worker, so the workers of several pools are actors of
our own. The Scheduler keeps the books; this file makes the Ray calls that the Scheduler's decisions lead to.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ExecutionResources
from ray.exceptions import RayActorError

from hfray import interrupts
from hfray.batch.dataset import TICK_SECONDS, Block, BlockStream, streaming
from hfray.batch.pool_worker import MAX_CALLS, PoolWorker
from hfray.batch.scheduler import Assignment, Scheduler, WorkerSlot
from hfray.cluster.pools import Pool
from hfray.config.batch import BatchSettings

MAX_BLOCK = 64  # rows: at the end of a run the slowest worker is left with a few blocks of this size
READ_AHEAD = 16  # blocks queued, at least
READ_CPUS = 4  # Ray Data does not know that our workers book CPUs; unlimited, it would ask the cluster to grow
# Ray restarts a worker as often as needed. The driver requeues the worker's blocks, so Ray must not retry the calls.
RESTARTS = {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": MAX_CALLS + 2}
POLL_SECONDS = 0.02  # between two looks at the workers while the reader is the bottleneck


@dataclass(frozen=True, slots=True)
class _CreditRequest:
    """A call that returns once the worker has room for blocks."""

    worker: WorkerSlot[Block]


@dataclass(frozen=True, slots=True)
class _AnswerCall:
    """A call that answers a block; `answer` refers to the output rows."""

    worker: WorkerSlot[Block]
    block: Block
    answer: ray.ObjectRef


@contextlib.contextmanager
def answering(
    pools: Sequence[Pool[BatchSettings]], rows: ray.data.Dataset, size: int, monitor: Any
) -> Iterator[Dispatcher]:
    """Answer the blocks of `rows` on the workers of all pools. Leaving the context stops the workers.

    Args:
        size: rows in a block.
        monitor: the handle of the Monitor actor.
    """
    with _cpu_limit(rows), streaming(rows) as stream:
        dispatcher = Dispatcher(pools, stream, size, monitor)
        try:
            dispatcher.start_workers()
            yield dispatcher
        finally:
            with interrupts.deferred():
                dispatcher.stop_workers()


@contextlib.contextmanager
def _cpu_limit(rows: ray.data.Dataset) -> Iterator[None]:
    options = rows.context.execution_options
    before = options.resource_limits
    options.resource_limits = ExecutionResources(cpu=READ_CPUS)
    try:
        yield
    finally:
        options.resource_limits = before


class Dispatcher:
    """Sends blocks to the workers of all pools and collects the answers (a pipeline's BlockSource)."""

    def __init__(self, pools: Sequence[Pool[BatchSettings]], blocks: BlockStream, size: int, monitor: Any) -> None:
        self.scheduler: Scheduler[Block] = Scheduler()
        self._pools, self._blocks, self._size, self._monitor = pools, blocks, size, monitor
        self._actor_class = ray.remote(PoolWorker)
        self._actors: dict[WorkerSlot[Block], Any] = {}
        self._calls: dict[ray.ObjectRef, _CreditRequest | _AnswerCall] = {}

    @property
    def done(self) -> bool:
        """Whether every block has been answered."""
        return self._blocks.ended and not self.scheduler.has_work

    def requeue(self, blocks: Sequence[Block]) -> None:
        """Answer these input blocks again."""
        self.scheduler.requeue(blocks)

    def poll(self) -> list[Block]:
        """Send out all blocks that workers have room for; returns blocks answered since the last call."""
        scheduler = self.scheduler
        missing = max(READ_AHEAD, 2 * len(scheduler.workers)) - len(scheduler.queued)
        scheduler.add(self._blocks.take(missing))
        now = time.monotonic()
        self._send(scheduler.dispatch(now))
        if self._blocks.ended:
            self._send(scheduler.copy_stragglers(now))
        self._grow_pools()
        waits_for_reader = not scheduler.queued and not self._blocks.ended
        return self._collect(POLL_SECONDS if waits_for_reader else TICK_SECONDS)

    # --- workers -----------------------------------------------------------------------------------------------

    def start_workers(self) -> None:
        """Start the smallest number of workers of every pool."""
        for pool in self._pools:
            self._start(pool, pool.workers.bounds[0])

    def stop_workers(self) -> None:
        """Kill all workers."""
        for actor in self._actors.values():
            with contextlib.suppress(Exception):  # the worker, or Ray itself, may be gone already
                ray.kill(actor)

    def _grow_pools(self) -> None:
        """Double every pool that has no worker left to start while blocks are queued."""
        for pool in self._pools:
            if self.scheduler.is_saturated(pool.name):
                now = self.scheduler.size_of(pool.name)
                self._start(pool, min(now, pool.workers.bounds[1] - now))

    def _start(self, pool: Pool[BatchSettings], number: int) -> None:
        for _ in range(number):
            args = (self._size, pool.settings, pool.folder, pool.threads, self._monitor, pool.name)
            actor: Any = self._actor_class.options(**RESTARTS, **pool.booking).remote(*args)
            worker = self.scheduler.add_worker(actor._actor_id.hex(), pool.name)
            self._actors[worker] = actor
            self._wait_for_start(worker)

    def _wait_for_start(self, worker: WorkerSlot[Block]) -> None:
        """Request credits from the next process of a worker; Ray retries the call until a process answers."""
        request = self._actors[worker].request_blocks.options(max_task_retries=-1)
        self._calls[request.remote(0, 0)] = _CreditRequest(worker)

    # --- calls -------------------------------------------------------------------------------------------------

    def _send(self, assignments: Sequence[Assignment[Block]]) -> None:
        for worker, block in assignments:
            answer, done = self._actors[worker].answer.options(num_returns=2).remote(block.ref)
            self._calls[done] = _AnswerCall(worker, block, answer)
        for worker in dict.fromkeys(assignment.worker for assignment in assignments):
            if not worker.credits:
                self._request_credits(worker)

    def _request_credits(self, worker: WorkerSlot[Block]) -> None:
        request = self._actors[worker].request_blocks.remote(worker.sent_rows, worker.pid)
        self._calls[request] = _CreditRequest(worker)

    def _collect(self, timeout: float) -> list[Block]:
        """Wait for the first call to end, then handle all calls that have ended; returns the answered blocks."""
        pending = list(self._calls)
        if not pending:
            time.sleep(timeout)
            return []
        first, _ = ray.wait(pending, timeout=timeout, fetch_local=False)
        if not first:
            return []
        ended, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
        return [block for block in map(self._handle, ended) if block is not None]

    def _handle(self, ref: ray.ObjectRef) -> Block | None:
        """Handle a call that has ended; returns the answered block if there is one."""
        call = self._calls.pop(ref, None)
        if call is None:
            return None  # a call to a worker that died; another of its calls showed that
        try:
            result = ray.get(ref)
        except RayActorError:
            self._handle_death(call.worker)
            return None
        if isinstance(call, _CreditRequest):
            self.scheduler.grant(call.worker, *result)
            if not call.worker.credits:
                self._request_credits(call.worker)
            return None
        if not self.scheduler.completed(call.worker, call.block):
            return None  # another worker answered this block first
        if result != call.block.num_rows:
            raise RuntimeError(f"a worker returned {result} rows for a block of {call.block.num_rows} rows")
        return Block(call.answer, call.block.num_rows, source=call.block)

    def _handle_death(self, worker: WorkerSlot[Block]) -> None:
        """Requeue the blocks of a dead process; Ray restarts the process on any node with room."""
        if worker.pid:  # the Monitor must know of the death before another worker gets the same rows
            ray.get(self._monitor.died.remote(worker.name, worker.pid))
        self.scheduler.died(worker)
        for ref in [ref for ref, call in self._calls.items() if call.worker is worker]:
            del self._calls[ref]
        self._wait_for_start(worker)
