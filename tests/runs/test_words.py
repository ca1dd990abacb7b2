"""Numbers of a run in words."""

import pytest

from hfray.runs.snapshot import PoolCounts
from hfray.runs.timeleft import Estimate
from hfray.runs.words import (
    coarse,
    cut,
    duration,
    engine_words,
    left_words,
    moment,
    occupancy,
    pace_words,
    pool_words,
    rate,
    size,
)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (190, "3 min 10 s"), (3600, "1 h 0 min"), (18_720, "5 h 12 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (42, "40 s"),
        (203, "3 min 20 s"),
        (180, "3 min"),
        (1510, "25 min"),
        (3600, "1 h"),
        (18_500, "5 h 10 min"),
    ],
)
def test_a_time_left_claims_no_more_than_an_estimate_can(seconds, words):
    assert coarse(seconds) == words


def test_rates_and_sizes():
    assert [rate(value) for value in (1234.4, 56.66, 0.123)] == ["1,234", "56.7", "0.12"]
    assert [size(value) for value in (12, 3_400_000, 5e12)] == ["12 bytes", "3.4 MB", "5.0 TB"]
    assert pace_words(1.25, 1000, 20) == "1.2 rows/s  1,000 tokens/s in, 20 out"
    assert moment(0) == "1970-01-01 00:00:00 UTC"


def test_workers_and_engines():
    assert engine_words(1, 1, 4, 8) == "1 worker  engines 50% full"
    assert engine_words(1, 3, 0, 0) == "1 of 3 workers"
    assert occupancy(12, 8) == 1.0
    assert occupancy(1, 0) == 0.0


def test_pools():
    assert pool_words(PoolCounts()) == "no worker started"
    busy = PoolCounts(workers=2, rows=1000, prompt_tokens=5, generated_tokens=7, busy_share=0.5)
    assert pool_words(busy) == "2 workers, 1,000 rows, 5 tokens in, 7 out, 50% busy"


def test_a_long_text_loses_its_middle():
    assert cut("short") == "short"
    assert cut("a" * 10 + "b" * 10 + "c" * 10, 20) == "a" * 10 + "\n[… 10 characters left out …]\n" + "c" * 10


def test_the_time_left_in_words():
    assert left_words(None) == ""
    assert left_words(Estimate(92.0)) == "1 min 30 s left"
    assert left_words(Estimate(92.0, at_most=True)) == "at most 1 min 30 s left"
