"""The stream of blocks between Ray Data's thread and the driver, without a dataset."""

import queue
from types import SimpleNamespace

import pytest

from hfray.batch.dataset import Block, BlockStream, _pump


def stream(*items) -> BlockStream:
    filled: queue.Queue = queue.Queue()
    for item in items:
        filled.put(item)
    return BlockStream(filled)


def test_blocks_come_in_order_and_empty_blocks_are_left_out():
    blocks = stream(Block("a", 1), Block("b", 0), Block("c", 2), Block("d", 3), None)
    assert [block.ref for block in blocks.take(2)] == ["a", "c"]
    assert not blocks.ended
    assert [block.ref for block in blocks.take(9)] == ["d"]
    assert blocks.ended
    assert blocks.take(9, timeout=60) == []


def test_an_error_comes_after_the_blocks_before_it_and_stays():
    blocks = stream(Block("a", 1), ValueError("broken"))
    assert [block.ref for block in blocks.take(9)] == ["a"]
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            blocks.take(9)


def test_nothing_there_yet():
    assert stream().take(5, timeout=0.01) == []


def test_the_thread_passes_on_blocks_and_the_error_that_ends_them():
    def bundles():
        yield SimpleNamespace(blocks=[SimpleNamespace(ref="a", metadata=SimpleNamespace(num_rows=4))])
        raise KeyboardInterrupt

    items: queue.Queue = queue.Queue()
    _pump(bundles(), items)
    assert items.get() == Block("a", 4)
    assert isinstance(items.get(), KeyboardInterrupt)
