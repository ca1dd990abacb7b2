"""The actor of a pool's worker: a BatchWorker that requests blocks when its engine is about to run out of rows."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfray.batch.worker import BatchWorker
from hfray.config.batch import BatchSettings

MAX_CALLS = 80  # blocks in a worker: 1,024 rows in the smallest blocks, and more, as a slow row keeps its block open
POLL_SECONDS = 0.01  # between two looks at the engine while it has enough rows


class PoolWorker:
    """A BatchWorker as a Ray actor that the driver sends blocks to.

    Args:
        size: rows in a block.
        settings, folder, threads, monitor, pool: arguments of BatchWorker.
    """

    def __init__(
        self, size: int, settings: BatchSettings, folder: Path | None, threads: int | None, monitor: Any, pool: str
    ) -> None:
        self._size = size
        self._worker = BatchWorker(settings, folder, threads, monitor, pool)
        self._returned_rows = self._blocks = 0
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def request_blocks(self, sent_rows: int, pid: int) -> tuple[int, int]:
        """Waits until this worker has room for blocks; returns its process id and the number of blocks.

        Args:
            sent_rows: rows that the driver sent to the process `pid` so far, those on their way included.
            pid: the process that the driver sent these rows to, 0 if the driver knows none. A restarted process
                returns its new id immediately, with no room, so that the driver can correct `sent_rows`.
        """
        if pid not in (0, os.getpid()):
            return os.getpid(), 0
        while True:
            with self._lock:
                unanswered = sent_rows - self._returned_rows - self._worker.answered_rows
                room = free_blocks(self._worker.capacity, self._size, unanswered, self._blocks)
            if room > 0:
                return os.getpid(), room
            time.sleep(POLL_SECONDS)

    def answer(self, block: pa.Table) -> tuple[pa.Table, int]:
        """The output rows of a block, and their number."""
        with self._lock:
            self._blocks += 1
        answered = asyncio.run_coroutine_threadsafe(self._worker(block), self._loop).result()
        with self._lock:
            self._blocks -= 1
            self._returned_rows += block.num_rows
        return answered, answered.num_rows


def free_blocks(capacity: int, size: int, unanswered: int, blocks: int) -> int:
    """Blocks that a worker has room for.

    The unanswered rows should fill the engine, plus one block beside it. More rows would only wait here while another
    worker could take them.

    Args:
        capacity: rows that the engine runs at once, 0 if it is not loaded.
        size: rows in a block.
        unanswered: rows sent to the worker and not answered.
        blocks: blocks that the worker has not returned.
    """
    if not capacity:
        return 0
    held = -(-unanswered // size)
    return min(capacity // size + 2 - held, MAX_CALLS - blocks)
