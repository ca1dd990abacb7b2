"""Rates over a window. The tests give the times."""

from hfray.runs.pace import Pace


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
