"""Output folders written by tests: the files of a job, without running a job."""

import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq

from hfray.data.output import OutputFolder
from hfray.data.partreport import PartReport
from hfray.data.records import OUTPUT_FIELDS
from hfray.runs.recorder import RunRecorder
from hfray.runs.snapshot import Snapshot, Totals, WorkerCounts
from hfray.runs.summary import RunState, Summary

GONE = 2**22 + 1  # no process has this id


def row(number: int, text: str | None = "an answer", **values) -> dict:
    """An output row; a row with an `error` has no text."""
    error = values.get("error")
    plain = {
        "row_id": f"t.jsonl:{number}",
        "prompt": f"Question {number}?",
        "generated_text": None if error else text,
        "finish_reason": "error" if error else "stop",
        "num_prompt_tokens": 0 if error else 10 + number % 7,
        "num_generated_tokens": 0 if error else len((text or "").split()),
        "error": error,
    }
    return plain | values


def write_part(path, run_id: str, number: int, rows: list[dict], schema: pa.Schema | None = None) -> None:
    """Write a finished file of a run."""
    os.makedirs(path / "_hfray", exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema or pa.schema(OUTPUT_FIELDS))
    pq.write_table(table, path / f"part-{run_id}-{number:05d}.parquet")


def snapshot(rows: int, seconds: float = 0.0, workers: int = 1) -> Snapshot:
    """A Monitor's snapshot after `rows` rows."""
    worker = WorkerCounts(node="n1", rows=rows, generated_tokens=2 * rows, start_seconds=1.0)
    return Snapshot(
        totals=Totals(rows=rows, prompt_tokens=10 * rows, generated_tokens=2 * rows),
        running=4,
        capacity=8,
        workers=workers,
        workers_ready=workers,
        per_worker={f"w{i}": worker for i in range(workers)},
    )


def write_run(path, run_id: str, rows: int, ended: bool = True, before: int = 0, ago: float = 100.0, **changes) -> dict:
    """Write the record of a run that took a minute, and that ended or was killed; returns its JSON."""
    start = time.time() - ago
    marks = {"command": 0, "checked": 1, "ray_ready": 5, "model_ready": 9, "worker_process": 10, "engine_ready": 12}
    timeline = {name: start + seconds for name, seconds in marks.items()} | {"first_row": start + 14}
    summary = Summary(rows=rows, rows_done_before=before, written=PartReport(rows=rows - before), timeline=timeline)
    recorder = RunRecorder(OutputFolder(str(path)), run_id, summary)
    recorder._record.started = start
    for step in range(0, 11):
        recorder.update(snapshot((rows - before) * step // 10))
        recorder._record.samples[-1].time = start + 12 + 5 * step
    if ended:
        timeline["end"] = start + 60
    recorder._settle(RunState.FINISHED if ended else RunState.RUNNING, "")
    content = recorder._content | {"updated": start + 60} | changes
    (path / "_hfray").mkdir(exist_ok=True)
    (path / "_hfray" / f"run-{run_id}.json").write_text(json.dumps(content))
    return content


def write_settings(path, fingerprint: dict | None = None, **settings) -> None:
    """Write run.json."""
    about = {"settings": settings, "fingerprint": fingerprint or {}, "versions": {"hfray": "0.1.0"}}
    (path / "_hfray" / "run.json").write_text(json.dumps(about))
