"""The data path: read -> prompt -> worker -> write."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from hfray.batch import crew as pools
from hfray.batch.dataset import with_ticks
from hfray.batch.worker import BatchWorker
from hfray.batch.writer import Writer
from hfray.cluster.pools import Pool
from hfray.config.batch import BatchSettings
from hfray.data import readers
from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder, PartReport
from hfray.data.table import Table
from hfray.engines.capacity import capacity_of

BLOCKS_PER_WORKER = 64  # so that workers end together, and a crash costs a small share of the work
MIN_BLOCK, MAX_BLOCK = 16, 1024  # rows
MIN_IN_FLIGHT = 192  # rows in a worker at least; rows of a block that is not finished keep their place
IN_FLIGHT = 2.5  # ... and for each that its engine runs at once: enough that it never waits for the next block
MAX_CALLS = 32
WORKER_MEMORY = 1 << 20  # a resource of its own: Ray Data fuses stages of equal resources, the reader into the engine


@dataclass(frozen=True, slots=True)
class Job:
    """A batch job that has been looked over and may start."""

    settings: BatchSettings
    table: Table
    done: DoneRows
    output: OutputFolder
    run_id: str
    pools: list[Pool]


def run_pipeline(job: Job, monitor: Any, on_tick: Any) -> PartReport:
    """Answer every row that is not done and write it; returns counts of what was written.

    `on_tick(report)` is called about twice a second and after every file, and may raise to end the run; what has
    been answered by then is written first.
    """
    _set_up_ray_data(job.settings.verbose)
    size, files = rows_per_block(job), job.settings.output
    writer = Writer(job.output, job.run_id, files.rows_per_file, files.flush_seconds)
    table, done = ray.put(job.table), ray.put(job.done)
    slices = [{"slice": number} for number in range(len(job.table.slices))]
    rows = ray.data.from_items(slices, override_num_blocks=len(slices))
    rows = rows.map_batches(functools.partial(read_pending, table, done, size), batch_size=1)
    rows = rows.repartition(target_num_rows_per_block=size)
    if len(job.pools) == 1:
        answers = with_ticks(answered_by(job.pools[0], rows, size, monitor))
    else:
        answers = pools.answers(job.pools, rows, size, monitor, writer)
    with contextlib.closing(answers):
        try:
            for block in answers:
                if block is not None:
                    writer.add(block)
                on_tick(writer.poll())
        finally:
            writer.flush()
            report = writer.wait()
    on_tick(report)
    return report


def _set_up_ray_data(verbose: bool) -> None:
    """What every dataset made from now on takes over."""
    context = DataContext.get_current()
    if not verbose:
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs the errors that it raises, with tracebacks
    context.enable_progress_bars = False
    # Blocks that a reader may be ahead; with Ray Data's 2, one reader gave 13 blocks/s, and 8 fast workers starved.
    context._max_num_blocks_in_streaming_gen_buffer = 16
    context.execution_no_progress_timeout_s = -1  # a block may take hours; workers.step_timeout finds the hung
    # A full worker has one block more than it runs; Ray Data's own 1.75 is never reached, and the pool would not grow.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0


def answered_by(pool: Pool, rows: ray.data.Dataset, size: int, monitor: Any) -> ray.data.Dataset:
    """Rows answered by one pool's workers, in blocks as they come."""
    in_flight = max(MIN_IN_FLIGHT, IN_FLIGHT * capacity_of(pool.settings))
    calls = max(2, min(MAX_CALLS, math.ceil(in_flight / size)))
    low, high = pool.settings.workers.bounds
    return rows.map_batches(
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


def rows_per_block(job: Job) -> int:
    """Rows handed to a worker at a time: many blocks for each worker, none too small to be worth a task.

    Where workers are of several kinds, none so large either that the slowest is at its last for long.
    """
    pending = max(1, job.table.num_rows - job.done.count)
    workers = sum(pool.settings.workers.bounds[1] for pool in job.pools)
    share = math.ceil(pending / (workers * BLOCKS_PER_WORKER))
    largest = MAX_BLOCK if len(job.pools) == 1 else pools.MAX_BLOCK
    return job.settings.rows_per_block or min(max(share, MIN_BLOCK), largest)


def read_pending(table: Any, done: Any, size: int, batch: dict[str, Any]) -> Iterator[pa.Table]:
    """The rows of a slice that are not done yet; runs in a Ray Data task."""
    table, done = ray.get([table, done])
    for number in batch["slice"]:
        for block in readers.read(table, table.slices[number], size):
            pending = done.drop_from(block)
            if pending.num_rows:
                yield pending
