"""Finished rows into Parquet files."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from hfray.batch.dataset import Block
from hfray.cluster.nodes import home
from hfray.data.output import OutputFolder, PartReport

MAX_WRITES = 4  # files written at once


@dataclass(slots=True)
class Writer:
    """Gathers answered blocks to files: by number of rows, or when the oldest has waited long enough.

    `lost` holds the sources of answers that went with their node before they were written: whoever gave such blocks
    takes them out and has them answered again.
    """

    output: OutputFolder
    run_id: str
    rows_per_file: int
    flush_seconds: float
    report: PartReport = field(default_factory=PartReport)
    lost: list[Block] = field(default_factory=list)
    _blocks: list[Block] = field(default_factory=list)
    _rows: int = 0
    _since: float = 0.0
    _files: int = 0
    _writes: dict[Any, tuple[str, list[Block]]] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Take an answered block in, and start a file if it is time."""
        if not block.num_rows:
            return
        self._gather(block)
        if self._rows >= self.rows_per_file:
            self.flush()

    def poll(self) -> PartReport:
        """Start a file if the oldest block has waited long enough; returns counts of what is written by now."""
        if self._blocks and time.monotonic() - self._since >= self.flush_seconds:
            self.flush()
        self._collect(timeout=0)
        return self.report

    def flush(self) -> None:
        """Start a file of what has been gathered."""
        if not self._blocks:
            return
        while len(self._writes) >= MAX_WRITES:
            self._collect(timeout=None)
        name = f"part-{self.run_id}-{self._files:05d}.parquet"
        # A local folder is this machine's, whichever node answered the rows.
        write = _write_part.options(scheduling_strategy=home()) if self.output.is_local else _write_part
        task = write.remote(self.output, name, self.run_id, *(block.ref for block in self._blocks))
        self._writes[task] = (name, self._blocks)
        self._blocks, self._rows, self._files = [], 0, self._files + 1

    def wait(self) -> PartReport:
        """Wait until everything is written; raises WriteError."""
        while self._writes:
            self._collect(timeout=None)
        return self.report

    def settle(self, timeout: float) -> bool:
        """Write what there is, and wait a little; returns whether everything is written."""
        self.flush()
        self._collect(timeout)
        return not self._writes and not self.lost

    def _gather(self, block: Block) -> None:
        self._since = self._since if self._blocks else time.monotonic()
        self._blocks.append(block)
        self._rows += block.num_rows

    def _collect(self, timeout: float | None) -> None:
        if not self._writes:
            return
        finished, _ = ray.wait(list(self._writes), timeout=timeout)
        for task in finished:
            name, blocks = self._writes.pop(task)
            try:
                self.report.add(ray.get(task))
            except ray.exceptions.RayError as error:
                if not _is_loss(error) or any(block.source is None for block in blocks):
                    raise
                self.output.drop_part(name)  # a first try may have written it and died before it said so
                self._keep_what_is_there(blocks)

    def _keep_what_is_there(self, blocks: list[Block]) -> None:
        """Gather blocks anew, but those that are gone."""
        looks = [_look_at.remote(block.ref) for block in blocks]
        for block, look in zip(blocks, looks, strict=True):
            try:
                ray.get(look)
                self._gather(block)  # without a file of them at once: one may be about to be made
            except ray.exceptions.RayError as error:
                if not _is_loss(error):
                    raise
                self.lost.append(block.source)


def _is_loss(error: BaseException) -> bool:
    """Whether a task failed because what it was given is gone, and its makers' node with it."""
    cause = getattr(error, "cause", None)
    return isinstance(error, ray.exceptions.ObjectLostError) or isinstance(cause, ray.exceptions.ObjectLostError)


@ray.remote(num_cpus=0)
def _look_at(block: pa.Table) -> int:
    return block.num_rows


@ray.remote(num_cpus=0, max_retries=3)
def _write_part(output: OutputFolder, name: str, run_id: str, *blocks: pa.Table) -> PartReport:
    return output.write_part(name, list(blocks), run_id)
