"""Rates over a window, and the time left. The tests give the times."""

import pytest

from hfray.runs.pace import MIN_ROWS, MIN_SECONDS, Pace, TimeLeft


def test_rates_are_averages_over_the_window():
    pace = Pace(window=10)
    assert pace.add(0, 0, 0) == (0, 0)
    assert pace.add(5, 10, 50) == (2, 10)
    assert pace.add(10, 20, 100) == (2, 10)
    assert pace.add(20, 120, 100) == (10, 0)  # the samples before 10 s are outside the window


def test_a_counter_that_falls_gives_no_negative_rate():
    pace = Pace(window=10)
    pace.add(0, 100)
    assert pace.add(1, 90) == (0,)


def test_there_is_no_time_left_before_there_is_enough_to_estimate_from():
    left = TimeLeft()
    assert left.update(0, 0, 100) is None
    assert left.update(MIN_SECONDS / 2, MIN_ROWS, 92) is None
    assert left.update(MIN_SECONDS, MIN_ROWS - 1, 93) is None


def test_a_steady_run_gets_a_steady_estimate():
    left = TimeLeft()
    for second in range(100):
        seconds = left.update(second, 2 * second, 1000 - 2 * second)
    assert seconds == pytest.approx((1000 - 198) / 2, rel=0.05)
