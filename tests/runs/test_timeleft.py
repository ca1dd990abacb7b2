"""The time left: what it takes to estimate it. tests/batch/test_time_left.py checks it over whole runs."""

import pytest

from hfray.runs.buckets import bucket_of, empty_buckets
from hfray.runs.snapshot import Snapshot, Totals
from hfray.runs.timeleft import EVERY_SECONDS, MIN_SECONDS, TimeLeft


def counts(**rows: int) -> list[int]:
    """Rows by length: `counts(at_7=3)`."""
    found = empty_buckets()
    for name, number in rows.items():
        found[bucket_of(int(name.removeprefix("at_")))] += number
    return found


def generating(second: float, running: int = 8) -> Snapshot:
    """Eight rows that have grown by two tokens a second, of 100 at most."""
    grown = int(2 * second)
    return Snapshot(
        Totals(prompt_tokens=80, generated_tokens=running * grown),
        running=running,
        capacity=running,
        workers_ready=1,
        max_new_tokens=100,
        running_lengths=counts(**{f"at_{grown}": running}),
    )


def embedding(second: float, rate: float = 4.0, prompt: int = 20) -> Snapshot:
    """Rows without generated tokens, at a steady rate."""
    rows = int(rate * second)
    return Snapshot(
        Totals(rows=rows, prompt_tokens=prompt * rows), workers_ready=1, capacity=8, answer_lengths=counts(at_0=rows)
    )


def test_no_time_left_before_there_is_something_to_estimate_from():
    left = TimeLeft()
    assert left.update(0.0, Snapshot(), 8) is None
    assert left.update(100.0, Snapshot(workers_ready=1), 8) is None  # the engine is ready now
    assert left.update(100.0 + 2 * MIN_SECONDS, Snapshot(workers_ready=1), 8) is None  # and has done nothing
    left = TimeLeft()
    assert [left.update(float(s), generating(s), 8) for s in range(int(MIN_SECONDS))] == [None] * int(MIN_SECONDS)


def test_a_wave_without_a_finished_row_has_an_upper_bound():
    left = TimeLeft()
    for second in range(21):
        estimate = left.update(float(second), generating(second), 8)
    assert estimate.at_most
    assert estimate.seconds == pytest.approx(30, abs=3)


def test_a_task_without_generated_tokens():
    left = TimeLeft()
    for second in range(51):
        estimate = left.update(float(second), embedding(second), 1000 - 4 * second)
    assert estimate.seconds == pytest.approx(200, rel=0.05)


def test_a_run_in_which_no_row_needs_an_engine():
    left = TimeLeft()
    for second in range(51):
        estimate = left.update(float(second), embedding(second, prompt=0), 1000 - 4 * second)
    assert estimate.seconds == pytest.approx(200, rel=0.05)


def test_between_two_estimates_the_time_left_counts_down():
    left = TimeLeft()
    left.update(0.0, generating(0), 8)
    left.update(4.0, generating(4), 8)
    left.update(8.0, generating(8), 8)
    first = left.update(20.0, generating(20), 8)
    later = left.update(20.0 + EVERY_SECONDS / 2, generating(20), 8)
    assert later.seconds == pytest.approx(first.seconds - EVERY_SECONDS / 2)


def test_a_stall_makes_the_time_left_longer_but_not_endless():
    left = TimeLeft()
    for second in range(100):
        before = left.update(float(second), embedding(second), 1000 - 4 * second)
    for second in range(100, 160):
        stalled = left.update(float(second), embedding(100), 600)
    assert before.seconds < stalled.seconds < 6 * before.seconds


def test_rows_that_come_in_bursts():
    """An engine that returns whole batches: 64 rows of 100 tokens every 16 s."""
    left, ends = TimeLeft(), []
    for second in range(480):
        rows = 64 * (second // 16)
        now = Snapshot(
            Totals(rows=rows, prompt_tokens=10 * rows, generated_tokens=100 * rows),
            running=64,
            capacity=64,
            workers_ready=1,
            max_new_tokens=128,
            answer_lengths=counts(at_100=rows),
        )
        estimate = left.update(float(second), now, 1920 - rows)
        if estimate and second >= 120:
            ends.append(second + estimate.seconds)
    assert 0.85 * 480 < min(ends) <= max(ends) < 1.15 * 480


def test_the_speed_is_that_of_the_last_half_minute():
    left, rows = TimeLeft(), 0
    for second in range(200):
        rows += 8 if second < 120 else 2
        now = Snapshot(
            Totals(rows=rows, prompt_tokens=20 * rows), workers_ready=1, capacity=8, answer_lengths=counts(at_0=rows)
        )
        estimate = left.update(float(second), now, 2000 - rows)
    assert estimate.seconds == pytest.approx((2000 - rows) / 2, rel=0.05)


def test_nothing_is_left_at_the_end():
    left = TimeLeft()
    for second in range(51):
        estimate = left.update(float(second), embedding(second), 200 - 4 * second)
    assert estimate is None
