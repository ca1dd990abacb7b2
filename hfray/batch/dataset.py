"""Streams the blocks of a Ray Data dataset to the driver through a thread, so that the driver never blocks on Ray Data."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import ray

from hfray import interrupts

TICK_SECONDS = 0.5  # longest time between two looks at the state of the run
QUEUE_BLOCKS = 64


class Block(NamedTuple):
    """A block in Ray's object store. `source` of an answered block is the input block, if it can be answered again."""

    ref: ray.ObjectRef
    num_rows: int
    source: Block | None = None


class BlockStream:
    """The blocks that a dataset has produced so far, in the order in which they were produced."""

    def __init__(self, items: queue.Queue[Block | BaseException | None]) -> None:
        self.ended = False
        self._items = items
        self._error: BaseException | None = None

    def take(self, limit: int, timeout: float = 0.0) -> list[Block]:
        """At most `limit` blocks that have rows; waits up to `timeout` seconds for the first.

        Raises:
            BaseException: the error that ended the dataset, after all blocks before the error were taken.
        """
        if self._error is not None:
            raise self._error
        blocks: list[Block] = []
        while len(blocks) < limit and not self.ended:
            try:
                item = self._items.get(block=not blocks and timeout > 0, timeout=timeout or None)
            except queue.Empty:
                break
            if item is None:
                self.ended = True
            elif isinstance(item, BaseException):
                self._error = item
                if blocks:
                    break
                raise item
            elif item.num_rows:
                blocks.append(item)
        return blocks


@contextlib.contextmanager
def streaming(dataset: ray.data.Dataset) -> Iterator[BlockStream]:
    """Execute a dataset and stream its blocks.

    Leaving the context early stops the tasks and actors of the dataset and joins the thread: a thread that uses Ray
    after `ray.shutdown` would end the process silently.
    """
    # `iter_internal_ref_bundles` does the same, but hides the executor and waits for the first block.
    executor = dataset._create_executor()
    bundles = dataset._build_bundle_iterator(executor)
    items: queue.Queue[Block | BaseException | None] = queue.Queue(maxsize=QUEUE_BLOCKS)
    thread = threading.Thread(target=_pump, args=(bundles, items), daemon=True)
    thread.start()
    try:
        yield BlockStream(items)
    finally:
        with interrupts.deferred():
            executor.shutdown(force=True)
            executor.join(timeout=60)
            while thread.is_alive():
                with contextlib.suppress(queue.Empty):
                    items.get(timeout=0.01)


def _pump(bundles: Iterable[Any], items: queue.Queue[Block | BaseException | None]) -> None:
    try:
        for bundle in bundles:
            for entry in bundle.blocks:
                items.put(Block(entry.ref, entry.metadata.num_rows))
        items.put(None)
    except BaseException as error:
        items.put(error)
