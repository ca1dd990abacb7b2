"""The distribution of lengths, while many answers are still being generated."""

import random

import numpy as np
import pytest

from hfray.runs.buckets import bucket_of, empty_buckets
from hfray.runs.survival import survival


def counted(lengths) -> list[int]:
    counts = empty_buckets()
    for length in lengths:
        counts[bucket_of(int(length))] += 1
    return counts


def test_before_any_answer_ends_all_are_taken_to_reach_the_limit():
    found = survival(empty_buckets(), counted([20] * 64), limit=200)
    assert found.bounded
    assert found.mean == pytest.approx(200)
    assert found.zero == 0


def test_answers_that_still_run_count_as_longer_ones():
    """All answers will be 10 or 100 tokens long, half and half; at 50 tokens only the short ones have ended."""
    ended, running = counted([10] * 50), counted([50] * 50)
    assert survival(ended, empty_buckets(), limit=100).mean == pytest.approx(10, abs=1)
    assert survival(ended, running, limit=100).mean == pytest.approx(55, rel=0.1)


def test_rows_without_a_token():
    found = survival(counted([0] * 30 + [40] * 70), empty_buckets(), limit=64)
    assert found.zero == pytest.approx(0.3)
    assert found.mean == pytest.approx(0.7 * 40, rel=0.05)


def test_answers_that_the_limit_ends():
    found = survival(counted([64] * 40), counted([10] * 8), limit=64)
    assert not found.bounded
    assert found.mean == pytest.approx(64)


@pytest.mark.parametrize("now", [60, 100, 200])
def test_the_lengths_beyond_the_longest_so_far_are_extrapolated(now):
    """Lognormal lengths with a mean of 113, of which only those up to `now` have ended."""
    chance = random.Random(3)
    lengths = [chance.lognormvariate(4.6, 0.5) for _ in range(2000)]
    ended, running = [x for x in lengths if x < now], [now for x in lengths if x >= now]
    found = survival(counted(ended), counted(running), limit=4096)
    assert found.mean == pytest.approx(np.mean(lengths), rel=0.15)


def test_cells_hold_the_running_rows_that_have_a_token():
    found = survival(empty_buckets(), counted([0, 0, 5, 150, 199]), limit=200)
    cells = found.cells(counted([0, 0, 5, 150, 199]))
    assert cells.sum() == 3
    assert [index * found.width for index in np.flatnonzero(cells)] == pytest.approx([5, 150, 199], abs=2 * found.width)


def test_a_limit_of_one_token_and_lengths_beyond_the_limit():
    assert survival(empty_buckets(), empty_buckets(), limit=1).mean == pytest.approx(1)
    assert survival(counted([500]), counted([600]), limit=64).mean == pytest.approx(64)
