"""The stateful actor: one engine and one prompt renderer, for the batch job and the online service alike."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfray.batch.isolation import Gate
from hfray.batch.metrics import WorkerMetrics
from hfray.batch.monitor import FATAL_DEATHS, GROUP_SIZES
from hfray.completion import Completion
from hfray.data import records
from hfray.inference.loop import EngineDiedError
from hfray.inference.worker import Worker

HEARTBEAT_SECONDS = 1.0
# Seconds over workers.step_timeout, by which the heartbeat has ended a process that can still run Python.
FREEZE_MARGIN = 5.0


class BatchWorker:
    """A Worker in a batch job's actor pool: blocks in, output rows out, and its life reported to the Monitor.

    A dead or hung engine ends the process, not the call: calls of a process that is gone are repeated on another.

    Args:
        pool: the name of the worker's pool, where there are several.
    """

    def __init__(self, settings: Any, folder: Path | None, threads: int | None, monitor: Any, pool: str = "") -> None:
        import ray

        os.environ["HFRAY_WORKER"] = "1"
        started = time.monotonic()
        self._monitor = monitor
        self._name = ray.get_runtime_context().get_actor_id()
        node = f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"
        ray.get(monitor.starting.remote(self._name, node, os.getpid(), pool))
        self._gate = Gate()
        self._worker: Worker | None = None
        try:
            self._worker = Worker(settings, folder, threads, on_death=_exit)
        except Exception as error:  # raising here would have Ray print its own tracebacks beside the one clear message
            self._failure = f"a worker cannot start: {type(error).__name__}: {error}"
            ray.get(monitor.failed.remote(self._name, self._failure))
            return
        _collect_garbage_rarely()
        self._columns = self._worker.prompts.variables
        loop = self._worker.loop
        ray.get(monitor.ready.remote(self._name, time.monotonic() - started, loop.engine.capacity))
        step_timeout = settings.workers.step_timeout
        threading.Thread(target=self._heartbeat, args=(step_timeout,), daemon=True).start()
        threading.Thread(target=_end_if_frozen, args=(step_timeout + FREEZE_MARGIN,), daemon=True).start()

    @property
    def capacity(self) -> int:
        """Rows that the engine runs at once; 0 where it could not be loaded."""
        return 0 if self._worker is None else self._worker.loop.engine.capacity

    @property
    def answered_rows(self) -> int:
        """Rows that are answered, of blocks that are not yet."""
        return 0 if self._worker is None else self._worker.answered_rows

    async def __call__(self, block: pa.Table) -> pa.Table:
        """The output rows of a block, in its order."""
        if self._worker is None:
            await asyncio.sleep(3)  # the monitor knows, and the driver is about to end the run with the one cause
            raise RuntimeError(self._failure)
        row_ids = block["row_id"].to_pylist()
        key = row_ids[0]
        deaths = await self._monitor.begin.remote(self._name, key, row_ids)
        rows = records.python_rows(block.select(self._columns) if self._columns else block)
        errors = block["error"].to_pylist()
        if any(count >= 2 for count in deaths.values()):
            prompts, completions = await self._answer_suspects(row_ids, rows, errors, deaths)
        else:
            async with self._gate.shared():
                prompts, completions = await self._worker.answer(row_ids, rows, errors)
        self._monitor.finish.remote(self._name, key)
        self._monitor.report.remote(self._name, self._worker.loop.stats)
        return records.answered(block, prompts, completions)

    async def _answer_suspects(
        self, row_ids: list[str], rows: list[dict], errors: list[str | None], deaths: dict[str, int]
    ) -> tuple[list[str | None], list[Completion]]:
        """Rows that were at two deaths or more run in small groups with nothing beside them, the worst alone."""
        errors = [
            f"this row ended its worker's process again and again ({deaths[i]} times, the last time running alone)"
            if error is None and deaths.get(i, 0) >= FATAL_DEATHS
            else error
            for i, error in zip(row_ids, errors, strict=True)
        ]
        prompts: list[str | None] = [None] * len(rows)
        completions: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda n: -deaths.get(row_ids[n], 0))
        while order:
            size = GROUP_SIZES.get(min(deaths.get(row_ids[order[0]], 0), FATAL_DEATHS), len(order))
            group, order = order[:size], order[size:]
            async with self._gate.alone():
                await self._monitor.run_alone.remote(self._name, [row_ids[n] for n in group])
                answered = await self._worker.answer(
                    [row_ids[n] for n in group], [rows[n] for n in group], [errors[n] for n in group]
                )
                await self._monitor.run_alone.remote(self._name, [])
            for n, prompt, completion in zip(group, *answered, strict=True):
                prompts[n], completions[n] = prompt, completion
        return prompts, completions

    def _heartbeat(self, step_timeout: float) -> None:
        import ray

        loop = self._worker.loop
        metrics = WorkerMetrics(self._worker.settings.model.source)
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            metrics.update(loop.stats)
            if ray.get(self._monitor.report.remote(self._name, loop.stats)):
                loop.expect_end()
            if loop.stalled_for() > step_timeout:
                _exit(EngineDiedError(f"no step for {step_timeout:.0f} s (workers.step_timeout)"))


def _end_if_frozen(timeout: float) -> None:
    """End the process where native code keeps Python's lock for so long: no thread here, the heartbeat's neither, runs."""
    while True:
        # Its watch is native and needs no lock; each call starts it anew.
        faulthandler.dump_traceback_later(timeout, exit=True, file=2)
        time.sleep(HEARTBEAT_SECONDS)


def _collect_garbage_rarely() -> None:
    """For thousands of rows under way, Python's defaults look through all their objects again and again: half the time."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)


def _exit(error: EngineDiedError) -> None:
    """End this process: what it had in flight is nobody's fault here, and Ray gives it to another."""
    print(f"hfray worker {os.getpid()}: the engine died: {error}", flush=True)
    os._exit(1)
