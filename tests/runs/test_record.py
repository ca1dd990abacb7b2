"""The record of a run: its file, also of older versions, and whether the run is alive."""

import json
import os
import socket
import time
from dataclasses import replace

import pytest

from hfray.data.output import OutputFolder
from hfray.data.partreport import PartReport
from hfray.runs.record import NOW_FIELDS, RunRecord, Sample, read_runs, state_of
from hfray.runs.snapshot import PoolCounts, Snapshot, Totals, WorkerCounts
from hfray.runs.summary import RunState, Summary
from hfray.runs.timeleft import Estimate
from tests.folders import GONE, write_run

# The record of a finished run as version 0.1.0 wrote it.
OLD_RECORD = {
    "exit_code": 0,
    "status": "finished",
    "message": "",
    "output": "answers",
    "rows": 100,
    "rows_done_before": 40,
    "written": {
        "rows": 60,
        "failed": 1,
        "prompt_tokens": 600,
        "generated_tokens": 120,
        "finish_reasons": {"stop": 59, "error": 1},
        "errors": {"too long": 1},
    },
    "failed_total": 3,
    "seconds": 20.5,
    "engine": {
        "steps": 12,
        "share_of_full_steps": None,
        "busy_seconds": 7.25,
        "rows_of_equal_prompts": 4,
        "saved_tokens": {"generated": 8, "prompts": 40, "prefixes": 0},
        "workers": {"w0": {"pool": "", "node": "n1", "rows": 60, "deaths": 1, "generated_tokens": 120, "start_seconds": 2.5}},
        "workers_replaced": 1,
        "tail_seconds": None,
    },
    "timeline": {"command": 1000.0, "engine_ready": 1005.0, "last_row": 1015.0, "end": 1020.5},
    "rates": {"rows_per_second": 6.0, "prompt_tokens_per_second": 60.0, "generated_tokens_per_second": 12.0},
    "run_id": "aaaa",
    "host": "elsewhere",
    "pid": 17,
    "process_started": 999.5,
    "started": 1000.0,
    "totals": {"rows": 60, "failed_rows": 1, "prompt_tokens": 600, "generated_tokens": 120, "steps": 12,
               "full_steps": 0, "shared_rows": 4, "saved_prompt_tokens": 40, "saved_tokens": 8, "prefix_tokens": 0,
               "busy_seconds": 7.25},
    "workers": {"w0": {"pool": "", "node": "n1", "rows": 60, "deaths": 1, "generated_tokens": 120, "start_seconds": 2.5}},
    "pools": {},
    "now": {"running": 0, "capacity": 8, "workers_ready": 1, "deaths": 1},
    "stage": "generating",
    "samples": {
        "fields": ["time", "rows", "failed_rows", "prompt_tokens", "generated_tokens", "running", "capacity", "workers_ready"],
        "points": [[1005.0, 0, 0, 0, 0, 0, 8, 1], [1015.02, 60, 1, 600, 120, 4, 8, 1]],
    },
    "updated": 1020.6,
}  # fmt: skip


def test_an_older_record_is_read_and_written_as_it_was():
    record = RunRecord.from_json(OLD_RECORD)
    assert (record.run_id, record.pid, record.summary.status, record.summary.rows) == ("aaaa", 17, "finished", 100)
    assert record.summary.written == PartReport(
        60, 1, 600, 120, finish_reasons={"stop": 59, "error": 1}, errors={"too long": 1}
    )
    assert record.summary.engine.saved_tokens.prompts == 40
    assert record.snapshot.totals == Totals(
        12, 0, 60, 1, 600, 120, shared_rows=4, saved_prompt_tokens=40, saved_tokens=8, busy_seconds=7.25
    )
    assert record.snapshot.per_worker == {"w0": WorkerCounts("", "n1", 60, 120, 1, 2.5)}
    assert record.samples[1] == Sample(1015.02, 60, 1, 600, 120, 4, 8, 1)
    written = json.loads(json.dumps(record.to_json()))
    assert written["engine"].pop("precisions") == {}  # later versions know more
    for worker in (written["workers"]["w0"], written["engine"]["workers"]["w0"]):
        assert worker.pop("precision") == ""
    assert {key: written[key] for key in OLD_RECORD} == OLD_RECORD


def test_unknown_and_missing_keys():
    values = {
        "run_id": "bbbb",
        "rows": 10,
        "mood": "good",
        "totals": {"rows": 4, "colour": 1},
        "workers": {"w": {"rows": 4, "shoe_size": 44}},
        "samples": {"fields": ["rows", "smell", "time"], "points": [[4, 1, 17.5]]},
        "engine": {},
    }
    record = RunRecord.from_json(values)
    assert (record.run_id, record.summary.rows, record.summary.status) == ("bbbb", 10, "running")
    assert record.snapshot.totals == Totals(rows=4)
    assert record.snapshot.per_worker == {"w": WorkerCounts(rows=4)}
    assert record.samples == [Sample(time=17.5, rows=4)]
    assert state_of(record) == RunState.STOPPED
    assert RunRecord.from_json({}).samples == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "not a JSON object"),
        ("x", "not a JSON object"),
        ({"rows": "many"}, "rows"),
        ({"totals": []}, "dict"),
        ({"workers": {"w": {"rows": None}}}, "w.rows"),
        ({"samples": {"fields": ["rows"], "points": [["x"]]}}, "points"),
        ({"now": {"running": "fast"}}, "running"),
        ({"left": {"seconds": "soon"}}, "seconds"),
    ],
)
def test_values_of_wrong_types_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        RunRecord.from_json(values)


def test_a_record_is_read_back_as_it_was_written():
    summary = Summary(rows=7, message="so far", timeline={"command": 1.0}, status=RunState.RUNNING)
    snapshot = Snapshot(
        Totals(rows=3, busy_seconds=0.5),
        running=2,
        capacity=8,
        workers=1,
        workers_ready=1,
        timeline={"engine_ready": 2.0},
        per_worker={"w": WorkerCounts(pool="a", rows=3)},
        pools={"a": PoolCounts(workers=1, rows=3, busy_share=0.5)},
    )
    record = RunRecord("cccc", "here", 5, started=1.0, stage="generating", summary=summary, snapshot=snapshot)
    record.samples = [Sample(2.0, 3), Sample(3.0, 3, running=2, capacity=8, workers_ready=1, pools={"a": (7, 9)})]
    record.left, record.estimated = Estimate(12.5, at_most=True), 3.0
    copy = RunRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert copy.snapshot == replace(snapshot, timeline={})
    assert copy.samples == [replace(record.samples[0], pools={"a": (0, 0)}), record.samples[1]]
    assert (copy.left, copy.estimated) == (record.left, 3.0)
    assert copy.summary.timeline == {"command": 1.0, "engine_ready": 2.0}
    assert copy.to_json() == record.to_json()
    assert set(NOW_FIELDS) == copy.to_json()["now"].keys()


@pytest.mark.parametrize(
    ("record", "state"),
    [
        (RunRecord(summary=Summary(status="finished")), "finished"),
        (RunRecord(host="elsewhere", updated=0.0, summary=Summary(status="running")), "stopped"),
        (RunRecord(host=socket.gethostname(), pid=GONE, summary=Summary(status="running")), "stopped"),
        (RunRecord(host=socket.gethostname(), pid=os.getpid(), summary=Summary(status="running")), "stopped"),
    ],
)
def test_states(record, state):
    assert state_of(record) == state


def test_a_run_on_another_machine_is_alive_while_it_writes():
    record = RunRecord(host="elsewhere", updated=time.time() - 5, summary=Summary(status="running"))
    assert state_of(record) == RunState.RUNNING


def test_runs_are_sorted_by_their_start(tmp_path):
    write_run(tmp_path, "bbbb", 10, ago=100)
    write_run(tmp_path, "aaaa", 10, ago=50)
    (tmp_path / "_hfray/run.json").write_text("{}")
    assert [run.run_id for run in read_runs(OutputFolder(str(tmp_path)))] == ["bbbb", "aaaa"]
