"""The writer: collects answered blocks and writes them as Parquet files in Ray tasks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pyarrow as pa
import ray
from ray.exceptions import ObjectLostError, RayError

from hfray.batch.dataset import Block
from hfray.cluster.nodes import on_driver_node
from hfray.data.output import OutputFolder
from hfray.data.partreport import PartReport

MAX_WRITES = 4  # files written at the same time


@dataclass(slots=True)
class Writer:
    """Collects answered blocks and writes a file when enough rows are collected or the oldest block has waited enough.

    An answered block that is lost with its node before it is written cannot be written. The writer keeps the source of
    such a block until `take_lost`; the caller has the source answered again.

    Args:
        run_id: part of the name of every file.
        rows_per_file: rows that start a file.
        flush_seconds: longest time that a block waits for its file to start.
    """

    output: OutputFolder
    run_id: str
    rows_per_file: int
    flush_seconds: float
    report: PartReport = field(default_factory=PartReport)
    _lost: list[Block] = field(default_factory=list)
    _blocks: list[Block] = field(default_factory=list)
    _rows: int = 0
    _since: float = 0.0
    _files: int = 0
    _writes: dict[ray.ObjectRef, tuple[str, list[Block]]] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Collect an answered block; start a file if there are enough rows."""
        if not block.num_rows:
            return
        self._collect(block)
        if self._rows >= self.rows_per_file:
            self.flush()

    def poll(self) -> PartReport:
        """Start a file if the oldest block has waited long enough; returns the counts of all rows written so far."""
        if self._blocks and time.monotonic() - self._since >= self.flush_seconds:
            self.flush()
        self._finish_writes(timeout=0)
        return self.report

    def flush(self) -> None:
        """Start a file with all collected blocks."""
        if not self._blocks:
            return
        while len(self._writes) >= MAX_WRITES:
            self._finish_writes(timeout=None)
        name = f"part-{self.run_id}-{self._files:05d}.parquet"
        # Only the driver's machine has a local output folder, whichever node answered the rows.
        write = _write_part.options(scheduling_strategy=on_driver_node()) if self.output.is_local else _write_part
        task = write.remote(self.output, name, self.run_id, *(block.ref for block in self._blocks))
        self._writes[task] = (name, self._blocks)
        self._blocks, self._rows, self._files = [], 0, self._files + 1

    def wait(self) -> PartReport:
        """Wait until every started file is written. Raises WriteError."""
        while self._writes:
            self._finish_writes(timeout=None)
        return self.report

    def drain(self, timeout: float) -> bool:
        """Start a file with all collected blocks and wait up to `timeout` seconds; returns whether nothing is left."""
        self.flush()
        self._finish_writes(timeout)
        return not (self._writes or self._blocks or self._lost)

    def take_lost(self) -> list[Block]:
        """The source blocks of all lost answers since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def _collect(self, block: Block) -> None:
        self._since = self._since if self._blocks else time.monotonic()
        self._blocks.append(block)
        self._rows += block.num_rows

    def _finish_writes(self, timeout: float | None) -> None:
        if not self._writes:
            return
        finished, _ = ray.wait(list(self._writes), timeout=timeout)
        for task in finished:
            name, blocks = self._writes.pop(task)
            try:
                self.report.add(ray.get(task))
            except RayError as error:
                if not _is_loss(error) or any(block.source is None for block in blocks):
                    raise
                self.output.drop_part(name)  # a first attempt may have written the file and died before it reported
                self._collect_survivors(blocks)

    def _collect_survivors(self, blocks: list[Block]) -> None:
        """Collect the blocks that still exist again, and remember the sources of the others."""
        probes = [_num_rows.remote(block.ref) for block in blocks]
        for block, probe in zip(blocks, probes, strict=True):
            try:
                ray.get(probe)
                self._collect(block)  # not `add`: this may run inside `flush`, which is about to start a file
            except RayError as error:
                if not _is_loss(error) or block.source is None:
                    raise
                self._lost.append(block.source)


def _is_loss(error: BaseException) -> bool:
    """Whether a task failed because an argument was lost with its node."""
    cause = getattr(error, "cause", None)
    return isinstance(error, ObjectLostError) or isinstance(cause, ObjectLostError)


@ray.remote(num_cpus=0)
def _num_rows(block: pa.Table) -> int:
    return block.num_rows


@ray.remote(num_cpus=0, max_retries=3)
def _write_part(output: OutputFolder, name: str, run_id: str, *blocks: pa.Table) -> PartReport:
    return output.write_part(name, list(blocks), run_id)
