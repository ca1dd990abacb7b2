"""The watchdog's decision, without Ray and without threads."""

from __future__ import annotations

import subprocess
import sys

from hfray.batch.watchdog import Reporter, Watchdog
from hfray.inference.stats import LoopStats


class FakeLoop:
    def __init__(self, stalled: float) -> None:
        self.stats, self.stalled, self.at_end = LoopStats(rows=5), stalled, False

    def stalled_for(self) -> float:
        return self.stalled

    def expect_end(self) -> None:
        self.at_end = True


def beat(stalled: float, all_begun: bool = False):
    loop, ended, exported = FakeLoop(stalled), [], []
    Watchdog(loop, lambda stats: all_begun, exported.append, 10.0, ended.append).beat()
    return loop, ended, exported


def test_an_engine_that_steps_is_left_alone():
    loop, ended, exported = beat(stalled=9.9)
    assert (ended, loop.at_end, exported) == ([], False, [loop.stats])


def test_an_engine_without_a_step_for_too_long_ends_the_process():
    _, ended, _ = beat(stalled=10.1)
    assert len(ended) == 1
    assert "workers.step_timeout" in str(ended[0])


def test_the_loop_learns_that_no_more_rows_come():
    assert beat(stalled=0.0, all_begun=True)[0].at_end


def test_the_loop_reports_once_a_second_however_many_steps_it_makes():
    reports, exported, seconds = [], [], iter([0.0, 0.4, 0.9, 1.1, 1.5, 2.0, 2.2])
    reporter = Reporter(FakeLoop(0.0), reports.append, exported.append, clock=lambda: next(seconds))
    counts = [(reporter.after_step(), len(reports))[1] for _ in range(6)]
    assert counts == [0, 0, 1, 1, 1, 2]
    assert exported == reports


FREEZE = """
import ctypes, threading, time
from hfray.batch import watchdog
threading.Thread(target=watchdog._end_if_frozen, args=(1.0,), daemon=True).start()
time.sleep(0.3)
ctypes.PyDLL(None).sleep(3600)
"""


def test_a_process_is_ended_while_native_code_holds_the_gil():
    done = subprocess.run([sys.executable, "-c", FREEZE], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
