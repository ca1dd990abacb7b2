"""How far a run is, from its folder alone."""

import os
import re
import time

import pytest

from hfray.errors import SettingsError
from hfray.runs.liveness import ProcessMark
from hfray.runs.status import describe, read_status
from tests.conftest import run_job
from tests.folders import GONE, row, write_part, write_run

MARK = ProcessMark.of_this_process()
ME = {"pid": MARK.pid, "process_started": MARK.began, "process_birth": MARK.birth}


def lines(path) -> list[str]:
    return describe(read_status(str(path)))


def test_a_run_that_lives(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(n) for n in range(30)])
    write_run(tmp_path, "aaaa", 100, ended=False, ago=60, updated=time.time(), **ME)
    status = read_status(str(tmp_path))
    assert (status.state, status.rows_written, status.rows_answered) == ("running", 30, 100)
    first, second, third = describe(status)
    assert re.fullmatch(r"running: generating, for 1 min \d+ s", first)
    assert second == "100 of 100 rows (100.0%), 30 of them in finished files, 0 failed"
    assert third.startswith("2.0 rows/s  20 tokens/s in, 4 out  1 worker  engines 50% full")


def test_the_time_left_is_the_estimate_of_the_run_itself(tmp_path):
    record = {"left": {"seconds": 100.0, "at_most": False}, "estimated": time.time() - 40, "updated": time.time()}
    write_run(tmp_path, "aaaa", 100, ended=False, ago=60, **ME | record)
    assert lines(tmp_path)[2].endswith("engines 50% full  1 min left")
    record["left"]["at_most"] = True
    write_run(tmp_path, "aaaa", 100, ended=False, ago=60, **ME | record)
    assert lines(tmp_path)[2].endswith("engines 50% full  at most 1 min left")


def test_the_tokens_per_second_of_each_pool(tmp_path):
    """They come from the engines' counters, so they are there before any row is finished."""
    fields = ["time", "rows", "prompt_tokens", "generated_tokens", "running", "capacity", "workers_ready"]
    points = [[1000.0 + second, 0, 30 * second, 100 * second, 8, 8, 2] for second in (0, 30)]
    pools = {"cpu": [[0, 0], [300, 1200]], "gpu": [[0, 0], [600, 1800]]}
    counted = {name: {"workers": 1, "prompt_tokens": p, "generated_tokens": g} for name, (_, (p, g)) in pools.items()}
    samples = {"fields": fields, "points": points, "pools": pools}
    write_run(tmp_path, "aaaa", 100, ended=False, ago=60, **ME, samples=samples, pools=counted)
    told = lines(tmp_path)
    assert told[2].startswith("0.0 rows/s  30 tokens/s in, 100 out")
    assert told[3] == "pool cpu: 1 worker, 0 rows, 300 tokens in, 1,200 out; now 10 tokens/s in, 40 out"
    assert told[4] == "pool gpu: 1 worker, 0 rows, 600 tokens in, 1,800 out; now 20 tokens/s in, 60 out"


def test_a_run_that_lives_and_tells_nothing(tmp_path):
    write_run(tmp_path, "aaaa", 100, ended=False, ago=600, **ME)
    assert "has reported nothing for 9 min" in lines(tmp_path)[0]


def test_a_run_whose_process_is_gone(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(n) for n in range(30)])
    write_run(tmp_path, "aaaa", 100, ended=False, updated=time.time(), pid=GONE)
    first, second, third = lines(tmp_path)
    assert first.startswith("stopped without a message")
    assert second.startswith("30 of 100 rows (30.0%)")
    assert third.startswith("last update")


def test_another_process_with_its_id_is_not_the_run(tmp_path):
    write_run(tmp_path, "aaaa", 100, ended=False, **ME | {"process_started": 5.0, "process_birth": None})
    assert read_status(str(tmp_path)).state == "stopped"


@pytest.mark.parametrize(("silent", "state"), [(5, "running"), (300, "stopped")])
def test_a_run_on_another_machine_lives_while_it_writes(tmp_path, silent, state):
    write_run(tmp_path, "aaaa", 100, ended=False, host="elsewhere", updated=time.time() - silent)
    assert read_status(str(tmp_path)).state == state


def test_a_finished_run_whose_rows_are_gone(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(n) for n in range(100)])
    write_run(tmp_path, "aaaa", 100)
    assert lines(tmp_path)[0] == "finished"
    os.remove(tmp_path / "part-aaaa-00000.parquet")
    assert lines(tmp_path)[0].startswith("finished, but rows are missing")


@pytest.mark.parametrize(("written", "told"), [(5, "25 of 25 rows (100.0%)"), (2, "22 of 25 rows (88.0%)")])
def test_rows_outside_the_last_input_do_not_count_and_are_explained(tmp_path, written, told):
    write_part(tmp_path, "aaaa", 0, [row(n) for n in range(40)])
    write_run(tmp_path, "aaaa", 40, ago=900)
    write_part(tmp_path, "bbbb", 0, [row(n) for n in range(40, 40 + written)])
    write_run(tmp_path, "bbbb", 25, before=20)
    status = read_status(str(tmp_path))
    assert (status.rows_written, status.other_rows, status.complete) == (20 + written, 20, written == 5)
    assert describe(status)[1].startswith(told)
    assert describe(status)[2].startswith("the folder also holds 20 rows that the last run's input did not contain")


def test_the_newest_run_counts(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(n) for n in range(60)])
    write_run(tmp_path, "aaaa", 100, ended=False, ago=900, pid=GONE)
    write_run(tmp_path, "bbbb", 100, before=60, status="failed", message="the disk is full")
    told = lines(tmp_path)
    assert told[0].startswith("failed; the finished rows are kept")
    assert told[1] == "the disk is full"
    assert told[-1] == "2 runs so far"


def test_no_run_there(tmp_path):
    with pytest.raises(SettingsError, match=r"output\.path=.*holds no run"):
        read_status(str(tmp_path))
    answer = run_job(f"output.path={tmp_path}/nothing", module="jobs.status")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: output.path=")
