"""How many blocks a pool's worker requests."""

import pytest

from hfray.batch.pool_worker import MAX_CALLS, free_blocks


@pytest.mark.parametrize(
    ("capacity", "size", "unanswered", "blocks", "free"),
    [
        (0, 16, 0, 0, 0),  # no engine
        (64, 16, 0, 0, 6),  # the capacity, and two blocks more
        (64, 16, 64, 4, 2),
        (64, 16, 65, 5, 1),  # a part of a block counts as a block
        (64, 16, 96, 6, 0),
        (64, 16, 200, 13, -7),  # more than it can run
        (8, 64, 0, 0, 2),  # a block that is larger than the engine
        (1024, 16, 0, 0, 66),  # a GPU
        (1024, 16, 0, MAX_CALLS - 1, 1),  # slow rows keep their blocks open
    ],
)
def test_free_blocks(capacity, size, unanswered, blocks, free):
    assert free_blocks(capacity, size, unanswered, blocks) == free
