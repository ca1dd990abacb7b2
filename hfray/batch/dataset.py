"""The blocks of a Ray Data dataset as they come, on a thread of their own, so that the driver is never held up."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray

TICK_SECONDS = 0.5


class Block(NamedTuple):
    """A block in the object store; of an answered one, `source` is what was read, where it may be needed again."""

    ref: Any
    num_rows: int
    source: Block | None = None


@contextlib.contextmanager
def arriving(dataset: ray.data.Dataset) -> Iterator[queue.Queue[Any]]:
    """Run a dataset; its blocks come into the queue, then None, or the error that ended it.

    Left early it ends the dataset's workers too, and no thread of it uses Ray any more: after ray.shutdown, Ray would
    end the process, without a word.
    """
    # As iter_internal_ref_bundles, which keeps the executor to itself and waits for the first block.
    executor = dataset._create_executor()
    bundles = dataset._build_bundle_iterator(executor)
    arrived: queue.Queue[Any] = queue.Queue(maxsize=64)
    pump = threading.Thread(target=_pump, args=(bundles, arrived), daemon=True)
    pump.start()
    try:
        yield arrived
    finally:
        executor.shutdown(force=True)
        executor.join(timeout=60)
        while pump.is_alive():
            with contextlib.suppress(queue.Empty):
                arrived.get(timeout=0.01)


def with_ticks(dataset: ray.data.Dataset) -> Iterator[Block | None]:
    """A dataset's blocks as they come, and None every so often while none does."""
    with arriving(dataset) as arrived:
        while True:
            try:
                item = arrived.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item


def _pump(bundles: Iterator[Any], arrived: queue.Queue[Any]) -> None:
    try:
        for bundle in bundles:
            for entry in bundle.blocks:
                arrived.put(Block(entry.ref, entry.metadata.num_rows))
        arrived.put(None)
    except BaseException as error:
        arrived.put(error)
