"""The actor of a batch job: one engine and one prompt renderer; blocks of rows in, blocks of answers out."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfray.batch.isolation import Isolation
from hfray.batch.metrics import WorkerMetrics
from hfray.batch.watchdog import Reporter, Watchdog
from hfray.cluster.pools import workers_of
from hfray.config.batch import BatchSettings
from hfray.data import records
from hfray.data.responses import ResponseColumns
from hfray.engines.load import WORKER
from hfray.errors import EngineDiedError, SettingsError
from hfray.inference.worker import Worker

FAILURE_SECONDS = 3.0  # the driver needs less to see the failure at the Monitor and to end the run with its cause


class BatchWorker:
    """A Worker as an actor that reports to the Monitor.

    A dead or hung engine ends the whole process, because Ray repeats the calls of a dead process on another worker.

    Args:
        folder: the prepared model, None to prepare the model here.
        threads: CPU threads of the engine.
        monitor: the handle of the Monitor actor.
        pool: the name of the worker's pool if there are several.
    """

    def __init__(
        self, settings: BatchSettings, folder: Path | None, threads: int | None, monitor: Any, pool: str = ""
    ) -> None:
        import ray

        os.environ[WORKER] = "1"
        started = time.monotonic()
        self._monitor = monitor
        self._name = ray.get_runtime_context().get_actor_id()
        node = f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"
        ray.get(monitor.starting.remote(self._name, node, os.getpid(), pool))
        self._worker: Worker | None = None
        try:
            self._worker = worker = Worker(settings, folder, threads, on_death=_end_process)
        except Exception as error:  # an exception raised here would make Ray print its own tracebacks as well
            unusable = isinstance(error, SettingsError)  # its message says all, and the exit code is 2
            self._failure = str(error) if unusable else f"a worker cannot start: {type(error).__name__}: {error}"
            ray.get(monitor.failed.remote(self._name, self._failure, unusable))
            return
        _collect_garbage_rarely()
        self._columns = worker.columns
        self._responses = ResponseColumns.of(settings)
        self._isolation = Isolation(worker.answer, lambda ids: monitor.run_alone.remote(self._name, list(ids)))
        engine, seconds = worker.loop.engine, time.monotonic() - started
        ray.get(monitor.ready.remote(self._name, seconds, engine.capacity, engine.precision))
        metrics = WorkerMetrics(settings.model.source, pool)
        worker.loop.after_step = Reporter(
            worker.loop, report=lambda stats: monitor.report.remote(self._name, stats), update_metrics=metrics.update
        ).after_step
        Watchdog(
            worker.loop,
            report=lambda stats: ray.get(monitor.report.remote(self._name, stats)),
            update_metrics=metrics.update,
            step_timeout=workers_of(settings).step_timeout,
            end_process=_end_process,
        ).start()

    @property
    def capacity(self) -> int:
        """Rows that the engine runs at once; 0 if the engine could not be loaded."""
        return 0 if self._worker is None else self._worker.loop.engine.capacity

    @property
    def answered_rows(self) -> int:
        """Answered rows of the blocks that are not finished yet."""
        return 0 if self._worker is None else self._worker.answered_rows

    async def __call__(self, block: pa.Table) -> pa.Table:
        """The output rows of a block, in order."""
        if self._worker is None:
            await asyncio.sleep(FAILURE_SECONDS)
            raise RuntimeError(self._failure)
        row_ids = block["row_id"].to_pylist()
        key = row_ids[0]
        deaths = await self._monitor.begin.remote(self._name, key, row_ids)
        rows = records.python_rows(block.select(self._columns) if self._columns else block)
        prompts, completions = await self._isolation.answer(row_ids, rows, block["error"].to_pylist(), deaths)
        self._monitor.finish.remote(self._name, key)
        self._monitor.report.remote(self._name, self._worker.loop.stats)
        return records.answered(block, prompts, completions, self._responses)


def _collect_garbage_rarely() -> None:
    """Raise the thresholds of Python's garbage collector, which takes half of the time with thousands of rows."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)


def _end_process(error: EngineDiedError) -> None:
    """End this process. The rows in flight are not at fault; Ray repeats their calls on another worker."""
    print(f"hfray worker {os.getpid()}: the engine died: {error}", flush=True)
    os._exit(1)
