"""The data path of a job: read the pending rows, answer them on the workers, write the answers."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from hfray import interrupts
from hfray.batch import dispatcher
from hfray.batch.dataset import QUEUE_BLOCKS, TICK_SECONDS, Block, BlockStream, streaming
from hfray.batch.pool_worker import MAX_CALLS
from hfray.batch.preflight import Job
from hfray.batch.worker import BatchWorker
from hfray.batch.writer import Writer
from hfray.cluster.pools import Pool
from hfray.config.batch import BatchSettings
from hfray.data import readers
from hfray.data.partreport import PartReport
from hfray.engines.capacity import capacity_of

BLOCKS_PER_WORKER = 64  # so that all workers finish at about the same time, and a crash costs a small share of the work
MIN_BLOCK, MAX_BLOCK = 16, 1024  # rows
MAX_BLOCK_BYTES = 32 << 20  # of input, by the mean size of a row in the slice with the largest rows
MIN_IN_FLIGHT = 192  # fewest rows in a worker; a row keeps its place until its whole block is finished
IN_FLIGHT = 2.5  # rows in a worker per row that its engine runs at once, so that the engine never waits for a block
# Ray Data fuses stages that book equal resources. This resource of 1 MiB keeps the reader out of the engine's actors.
WORKER_MEMORY = 1 << 20


class BlockSource(Protocol):
    """Answers blocks. The pipeline writes the answered blocks and returns those that were lost before."""

    def poll(self) -> list[Block]:
        """Blocks that were answered since the last call; waits about TICK_SECONDS for the first."""
        ...

    def requeue(self, blocks: Sequence[Block]) -> None:
        """Answer these input blocks again."""
        ...

    @property
    def done(self) -> bool:
        """Whether every block has been answered and returned by `poll`."""
        ...


def run_pipeline(
    job: Job, pools: Sequence[Pool[BatchSettings]], monitor: Any, on_tick: Callable[[PartReport], None]
) -> PartReport:
    """Answer and write every row that is not done; returns the counts of the rows that were written.

    Args:
        monitor: the handle of the Monitor actor.
        on_tick: called with the counts so far about twice a second. It may raise to stop the run; the pipeline then
            writes all answers that it has and raises the error.
    """
    _set_up_ray_data(job.settings.verbose)
    files = job.settings.output
    writer = Writer(job.output, job.run_id, files.rows_per_file, files.flush_seconds)
    with _answering(job, pools, monitor) as source:
        try:
            while not (source.done and writer.drain(TICK_SECONDS)):
                for block in source.poll():
                    writer.add(block)
                on_tick(writer.poll())
                source.requeue(writer.take_lost())
        finally:
            with interrupts.deferred():
                writer.flush()
                report = writer.wait()
    on_tick(report)
    return report


def _answering(job: Job, pools: Sequence[Pool[BatchSettings]], monitor: Any) -> AbstractContextManager[BlockSource]:
    size = rows_per_block(job, pools)
    table, done = ray.put(job.table), ray.put(job.done)
    slices = [{"slice": number} for number in range(len(job.table.slices))]
    rows = ray.data.from_items(slices, override_num_blocks=len(slices))
    read: Any = functools.partial(read_pending, table, done, size)
    rows = rows.map_batches(read, batch_size=1)
    rows = rows.repartition(target_num_rows_per_block=size)
    if len(pools) == 1:
        return _answering_in_ray_data(pools[0], rows, size, monitor)
    return dispatcher.answering(pools, rows, size, monitor)


def _set_up_ray_data(verbose: bool) -> None:
    """Settings that every dataset created later inherits."""
    context = DataContext.get_current()
    if not verbose:
        context.print_on_execution_start = False
        # Ray Data logs every error that it raises, with tracebacks.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context.enable_progress_bars = False
    # Blocks that a reader may be ahead. With Ray Data's default of 2, one reader gave 13 blocks/s and 8 fast workers
    # waited for blocks.
    context._max_num_blocks_in_streaming_gen_buffer = 16
    context.execution_no_progress_timeout_s = -1  # a block may take hours; workers.step_timeout finds hung engines
    # A busy worker holds one block more than it runs. A pool of such workers never reaches the default of 1.75, and
    # would never grow.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0


class _RayDataSource:
    """Blocks answered inside Ray Data, which requeues the blocks of dead workers itself."""

    def __init__(self, answers: BlockStream) -> None:
        self._answers = answers

    def poll(self) -> list[Block]:
        return self._answers.take(QUEUE_BLOCKS, TICK_SECONDS)

    def requeue(self, blocks: Sequence[Block]) -> None:
        if blocks:
            raise RuntimeError("Ray Data keeps no input block that could be answered again")

    @property
    def done(self) -> bool:
        return self._answers.ended


@contextlib.contextmanager
def _answering_in_ray_data(
    pool: Pool[BatchSettings], rows: ray.data.Dataset, size: int, monitor: Any
) -> Iterator[BlockSource]:
    in_flight = max(MIN_IN_FLIGHT, IN_FLIGHT * capacity_of(pool.settings))
    calls = max(2, min(MAX_CALLS, math.ceil(in_flight / size)))
    low, high = pool.workers.bounds
    answers = rows.map_batches(
        BatchWorker,
        fn_constructor_args=(pool.settings, pool.folder, pool.threads, monitor),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=low, max_size=high, max_concurrent_calls_per_actor=calls, max_tasks_in_flight_per_actor=calls + 1
        ),
        memory=WORKER_MEMORY,
        **pool.booking,
    )
    with streaming(answers) as stream:
        yield _RayDataSource(stream)


def rows_per_block(job: Job, pools: Sequence[Pool[BatchSettings]]) -> int:
    """Rows of a block: small enough for many blocks per worker, large enough that the overhead of a task is small.

    With several pools blocks are smaller, because a slow worker finishes its last blocks long after the others.
    """
    workers = sum(pool.workers.bounds[1] for pool in pools)
    share = math.ceil(max(1, job.pending_rows) / (workers * BLOCKS_PER_WORKER))
    largest = MAX_BLOCK if len(pools) == 1 else dispatcher.MAX_BLOCK
    rows = job.settings.rows_per_block or min(max(share, MIN_BLOCK), largest)
    row_bytes = max((piece.row_bytes for piece in job.table.slices), default=0)
    return max(1, min(rows, MAX_BLOCK_BYTES // max(1, row_bytes)))


def read_pending(
    table: ray.ObjectRef, done: ray.ObjectRef, size: int, batch: Mapping[str, Sequence[int]]
) -> Iterator[pa.Table]:
    """The rows of slices that are not done yet; runs in a Ray Data task."""
    table_value, done_value = ray.get([table, done])
    for number in batch["slice"]:
        for block in readers.read(table_value, table_value.slices[number], size):
            pending = done_value.drop_from(block)
            if pending.num_rows:
                yield pending
