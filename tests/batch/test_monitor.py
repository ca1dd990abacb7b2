"""The Monitor without Ray: deaths, suspects, totals over processes, pools, and when a run gives up."""

from hfray.batch.monitor import MAX_FAILED_STARTS, Monitor
from hfray.inference.stats import LoopStats
from hfray.runs.buckets import empty_buckets
from hfray.runs.snapshot import Totals


def started(pending: int = 20, pool: str = "") -> Monitor:
    monitor = Monitor(pending)
    monitor.starting("w", "n1", 1, pool)
    monitor.ready("w", 2.5, 8, "bf16")
    return monitor


def test_a_worker_that_answers():
    monitor = started()
    assert monitor.begin("w", "a", ["1", "2"]) == {}
    assert not monitor.report("w", LoopStats(rows=2, generated_tokens=6, running=2, capacity=8, last_full=5.0))
    monitor.finish("w", "a")
    now = monitor.snapshot()
    assert now.totals == Totals(rows=2, generated_tokens=6)
    assert (now.running, now.capacity, now.workers, now.workers_ready, now.deaths) == (2, 8, 1, 1, 0)
    assert {"worker_process", "engine_ready", "first_row", "last_row"} <= now.timeline.keys()
    assert now.timeline["last_full_step"] == 5.0
    assert now.per_worker["w"].start_seconds == 2.5
    assert now.precisions == {"bf16": 1}
    assert now.pools == {}


def test_rows_in_flight_at_a_death_are_suspect_and_answered_again():
    monitor = started(pending=3)
    monitor.begin("w", "a", ["1", "2"])
    monitor.finish("w", "a")
    monitor.begin("w", "b", ["3"])
    assert monitor.report("w", LoopStats(rows=3, generated_tokens=9))
    monitor.died("w", 1)
    monitor.died("w", 1)  # reported twice, counted once
    monitor.starting("w", "n2", 2)
    assert monitor.snapshot().deaths == 1
    assert monitor.snapshot().totals == Totals(rows=2, generated_tokens=9)
    assert not monitor.report("w", LoopStats())
    assert monitor.begin("w", "b", ["3"]) == {"3": 1}
    monitor.finish("w", "b")
    assert monitor.begin("w", "c", ["3"]) == {}


def test_only_the_rows_that_run_alone_are_suspect():
    monitor = started()
    monitor.begin("w", "a", ["1", "2"])
    monitor.run_alone("w", ["2"])
    monitor.starting("w", "n1", 2)
    assert monitor.begin("w", "a", ["1", "2"]) == {"2": 1}


def test_a_worker_that_dies_while_it_loads():
    monitor = Monitor(1)
    for pid in range(MAX_FAILED_STARTS + 1):
        assert monitor.snapshot().cannot_start is None
        monitor.starting("w", "n1", pid)
    assert "3 times in a row (node n1)" in monitor.snapshot().cannot_start


def test_a_worker_that_cannot_load_reports_the_cause():
    monitor = Monitor(1)
    monitor.starting("w", "n1", 1)
    monitor.failed("w", "no such file")
    now = monitor.snapshot()
    assert (now.cannot_start, now.unusable) == ("no such file", False)
    monitor.failed("w", "no chat template", unusable=True)
    assert monitor.snapshot().unusable


def test_pools_are_counted_separately():
    monitor = started(pool="a")
    monitor.starting("v", "n1", 7, "b")
    monitor.report("w", LoopStats(rows=4, busy_seconds=1e9))
    pools = monitor.snapshot().pools
    assert (pools["a"].workers, pools["a"].workers_ready, pools["a"].rows) == (1, 1, 4)
    assert (pools["b"].workers, pools["b"].workers_ready, pools["b"].rows, pools["b"].busy_share) == (1, 0, 0, None)


def lengths(**rows: int) -> list[int]:
    counts = empty_buckets()
    for name, number in rows.items():
        counts[int(name.removeprefix("at_"))] = number
    return counts


def test_the_lengths_of_answers_outlive_a_process_and_those_of_running_rows_do_not():
    monitor = started()
    stats = LoopStats(max_new_tokens=64, answer_lengths=lengths(at_3=2), running_lengths=lengths(at_5=1))
    monitor.report("w", stats)
    now = monitor.snapshot()
    assert (now.answer_lengths, now.running_lengths, now.max_new_tokens) == (lengths(at_3=2), lengths(at_5=1), 64)
    monitor.died("w", 1)
    assert monitor.snapshot().running_lengths == lengths()
    monitor.starting("w", "n1", 2)
    monitor.ready("w", 1.0, 8, "fp32")
    monitor.starting("v", "n1", 3)
    monitor.ready("v", 1.0, 8, "fp32")
    monitor.report("w", LoopStats(answer_lengths=lengths(at_3=1), running_lengths=lengths(at_2=1)))
    monitor.report("v", LoopStats(answer_lengths=lengths(at_4=1), running_lengths=lengths(at_2=2)))
    now = monitor.snapshot()
    assert (now.answer_lengths, now.running_lengths) == (lengths(at_3=3, at_4=1), lengths(at_2=3))
