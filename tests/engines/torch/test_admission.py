"""How many rows run together: by number, by memory, and after running out of memory."""

from __future__ import annotations

import pytest

from hfray.engines.base import Request
from hfray.engines.torch.admission import CALM_STEPS, PATIENCE, Admission
from hfray.engines.torch.kvcache import GROW_BY
from hfray.engines.torch.row import Row
from hfray.params import GenerationParams

NEW = 36


def rows(*lengths):
    made = []
    for i, length in enumerate(lengths):
        params = GenerationParams(max_new_tokens=NEW)
        made.append(Row(Request(id=i, prompt_ids=[1] * length, max_new_tokens=NEW, params=params)))
    return made


def final(row):
    return row.length + NEW


def admission(count, length, most=1000):
    """Memory for `count` rows of `length` tokens."""
    return Admission(most, 8192, count * (length + GROW_BY))


def test_without_a_limit_of_memory_the_number_of_rows_decides():
    waiting = rows(*[50] * 10)
    assert Admission(8, 100).choose(waiting, rows(1, 1, 1), final) == waiting[:5]
    assert Admission(2, 100).choose(waiting, rows(1, 1, 1), final) == []


@pytest.mark.parametrize("count", [1, 7, 300])
def test_the_rectangle_of_the_cache_fits_the_memory(count):
    waiting = rows(*[64] * 1000)
    assert len(admission(count, 100).choose(waiting, [], final)) == count


def test_a_long_row_waits_while_short_rows_run():
    limits = admission(256, 100)
    running, waiting = rows(*[64] * 200), rows(1900, *[64] * 300)
    chosen = limits.choose(waiting, running, final)
    assert chosen == waiting[1:57]
    assert waiting[0].passed == 1


def test_a_long_row_that_has_waited_long_enough_runs_as_soon_as_it_fits():
    limits = admission(256, 100)
    waiting = rows(1900, *[64] * 300)
    waiting[0].passed = PATIENCE
    assert limits.choose(waiting, rows(*[64] * 200), final) == []
    chosen = limits.choose(waiting, rows(*[64] * 10), final)
    assert chosen[0] is waiting[0]
    assert len(chosen) == 256 * (100 + GROW_BY) // (1936 + GROW_BY) - 10


def test_long_rows_alone_run_together():
    limits, waiting = admission(256, 100), rows(*[1900] * 40)
    assert len(limits.choose(waiting, [], final)) == 256 * (100 + GROW_BY) // (1936 + GROW_BY)


def test_a_row_longer_than_the_memory_runs_alone():
    waiting = rows(5000, 5000)
    assert admission(10, 100).choose(waiting, [], final) == waiting[:1]


def test_few_rows_wait_until_more_can_join():
    """A prefill of one row takes about as long as a step of all rows."""
    limits, running = admission(100, 100), rows(*[64] * 98)
    waiting = rows(*[64] * 50)
    assert limits.choose(waiting, running, final) == []
    assert limits.choose(waiting, running[:88], final) == waiting[:12]
    assert limits.choose(waiting[:2], running, final) == waiting[:2]  # no more come


def test_the_limits_rise_again_after_running_out_of_memory():
    limits = Admission(64, 8192, 100_000)
    limits.shrink(64, 4096, 80_000)
    assert (limits.rows, limits.prefill_tokens, limits.positions) == (32, 2048, 40_000)
    steps = 0
    while (limits.rows, limits.prefill_tokens, limits.positions) != (64, 8192, 100_000):
        limits.rise()
        steps += 1
    assert CALM_STEPS < steps < 20 * CALM_STEPS


def test_limits_that_fall_often_rise_slowly():
    limits = Admission(64, 8192)
    for _ in range(9):
        limits.shrink(limits.rows, 1, 0)
    assert limits.rows == limits.prefill_tokens == 1
    for _ in range(10 * CALM_STEPS):
        limits.rise()
    assert limits.rows == 1
