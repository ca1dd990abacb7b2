"""The data path: read -> prompt -> worker -> write."""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from hfray.config import BatchSettings
from hfray.inputs import Table
from hfray.nodes import home
from hfray.outputs import OutputFolder, PartReport
from hfray.resume import DoneRows
from hfray.worker import BatchWorker

BLOCKS_PER_WORKER = 64  # so that workers end together, and a crash costs a small share of the work
MIN_BLOCK, MAX_BLOCK = 16, 1024  # rows
IN_FLIGHT_ROWS = 192  # rows in a worker at least: enough that its engine never waits for the next block
MAX_CALLS = 16
MAX_WRITES = 4  # files written at once
WORKER_MEMORY = 1 << 20  # a resource of its own: Ray Data fuses stages of equal resources, the reader into the engine
TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """A batch job that has been looked over and may start."""

    settings: BatchSettings
    table: Table
    done: DoneRows
    output: OutputFolder
    folder: Path | None
    run_id: str
    threads: int
    reserved_cpus: float
    gpus: float


def run_pipeline(job: Job, monitor: Any, on_tick: Any) -> PartReport:
    """Answer every row that is not done and write it; returns counts of what was written.

    `on_tick(report)` is called about twice a second and after every file, and may raise to end the run; what has
    been answered by then is written first.
    """
    size, workers = rows_per_block(job), job.settings.workers
    calls = max(2, min(MAX_CALLS, math.ceil(IN_FLIGHT_ROWS / size)))
    low, high = workers.bounds
    # A full worker has one block more than it runs; Ray Data's own 1.75 is never reached, and the pool would not grow.
    DataContext.get_current().autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    pool = ActorPoolStrategy(
        min_size=low, max_size=high, max_concurrent_calls_per_actor=calls, max_tasks_in_flight_per_actor=calls + 1
    )
    table, done = ray.put(job.table), ray.put(job.done)

    slices = [{"slice": number} for number in range(len(job.table.slices))]
    rows = ray.data.from_items(slices, override_num_blocks=len(slices))
    rows = rows.map_batches(functools.partial(read_pending, table, done, size), batch_size=1)
    rows = rows.repartition(target_num_rows_per_block=size)
    answers = rows.map_batches(
        BatchWorker,
        fn_constructor_args=(job.settings, job.folder, job.threads, monitor),
        batch_size=None,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=job.reserved_cpus,
        num_gpus=job.gpus,
        memory=WORKER_MEMORY,
        resources=workers.resources or None,
        label_selector=workers.labels or None,
    )
    writer = Writer(job)
    try:
        for block, num_rows in with_ticks(answers):
            if block is not None:
                writer.add(block, num_rows)
            on_tick(writer.poll())
    finally:
        writer.flush()
        report = writer.wait()
    on_tick(report)
    return report


def rows_per_block(job: Job) -> int:
    """Rows handed to a worker at a time: many blocks for each worker, none too small to be worth a task."""
    pending = max(1, job.table.num_rows - job.done.count)
    share = math.ceil(pending / (job.settings.workers.bounds[1] * BLOCKS_PER_WORKER))
    return job.settings.workers.rows_per_block or min(max(share, MIN_BLOCK), MAX_BLOCK)


def read_pending(table: Any, done: Any, size: int, batch: dict[str, Any]) -> Iterator[pa.Table]:
    """The rows of a slice that are not done yet; runs in a Ray Data task."""
    table, done = ray.get([table, done])
    for number in batch["slice"]:
        for block in table.read(table.slices[number], size):
            pending = done.drop_from(block)
            if pending.num_rows:
                yield pending


def with_ticks(answers: ray.data.Dataset) -> Iterator[tuple[Any, int]]:
    """The blocks' references as they come, and (None, 0) every so often while none does."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a block may take hours; workers.step_timeout finds the hung
    # As iter_internal_ref_bundles, which keeps the executor to itself and waits for the first block.
    executor = answers._create_executor()
    bundles = answers._build_bundle_iterator(executor)
    arrived: queue.Queue[Any] = queue.Queue(maxsize=64)
    pump = threading.Thread(target=_pump, args=(bundles, arrived), daemon=True)
    pump.start()
    try:
        while True:
            try:
                item = arrived.get(timeout=TICK_SECONDS)
            except queue.Empty:
                item = (None, 0)
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        # A run that ends early must end its workers too, and no thread of it may use Ray after ray.shutdown: Ray would
        # end the process, without a word.
        executor.shutdown(force=True)
        executor.join(timeout=60)
        while pump.is_alive():
            with contextlib.suppress(queue.Empty):
                arrived.get(timeout=0.01)


def _pump(bundles: Iterator[Any], arrived: queue.Queue[Any]) -> None:
    try:
        for bundle in bundles:
            for entry in bundle.blocks:
                arrived.put((entry.ref, entry.metadata.num_rows))
        arrived.put(None)
    except BaseException as error:
        arrived.put(error)


@dataclass(slots=True)
class Writer:
    """Gathers answered blocks to files: by number of rows, or when the oldest has waited long enough."""

    job: Job
    report: PartReport = field(default_factory=PartReport)
    _blocks: list[Any] = field(default_factory=list)
    _rows: int = 0
    _since: float = 0.0
    _files: int = 0
    _writes: list[Any] = field(default_factory=list)

    def add(self, block: Any, num_rows: int) -> None:
        """Take an answered block in, and start a file if it is time."""
        if not num_rows:
            return
        self._since = self._since if self._blocks else time.monotonic()
        self._blocks.append(block)
        self._rows += num_rows
        if self._rows >= self.job.settings.output.rows_per_file:
            self.flush()

    def poll(self) -> PartReport:
        """Start a file if the oldest block has waited long enough; returns counts of what is written by now."""
        if self._blocks and time.monotonic() - self._since >= self.job.settings.output.flush_seconds:
            self.flush()
        self._collect(timeout=0)
        return self.report

    def flush(self) -> None:
        """Start a file of what has been gathered."""
        if not self._blocks:
            return
        while len(self._writes) >= MAX_WRITES:
            self._collect(timeout=None)
        name = f"part-{self.job.run_id}-{self._files:05d}.parquet"
        output = self.job.output
        # A local folder is this machine's, whichever node answered the rows.
        write = _write_part.options(scheduling_strategy=home()) if output.is_local else _write_part
        self._writes.append(write.remote(output, name, self.job.run_id, *self._blocks))
        self._blocks, self._rows, self._files = [], 0, self._files + 1

    def wait(self) -> PartReport:
        """Wait until everything is written; raises WriteError."""
        while self._writes:
            self._collect(timeout=None)
        return self.report

    def _collect(self, timeout: float | None) -> None:
        if not self._writes:
            return
        finished, self._writes = ray.wait(self._writes, timeout=timeout)
        for report in ray.get(finished):
            self.report.add(report)


@ray.remote(num_cpus=0, max_retries=3)
def _write_part(output: OutputFolder, name: str, run_id: str, *blocks: pa.Table) -> PartReport:
    return output.write_part(name, list(blocks), run_id)
