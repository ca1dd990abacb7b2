"""Output folders made by hand: what a job leaves, without the job."""

import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq

from hfray.data.output import OutputFolder, PartReport
from hfray.data.records import OUTPUT_FIELDS
from hfray.runs.record import RunRecord, Summary

GONE = 2**22 + 1  # a process id that none has


def row(number: int, text: str | None = "an answer", **values) -> dict:
    """An output row; one with an `error` has no text."""
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
    """A finished file of a run."""
    os.makedirs(path / "_hfray", exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema or pa.schema(OUTPUT_FIELDS))
    pq.write_table(table, path / f"part-{run_id}-{number:05d}.parquet")


def snapshot(rows: int, seconds: float = 0.0, workers: int = 1) -> dict:
    """What a Monitor tells after so many rows."""
    totals = {"rows": rows, "failed_rows": 0, "prompt_tokens": 10 * rows, "generated_tokens": 2 * rows}
    per_worker = {"node": "n1", "rows": rows, "generated_tokens": 2 * rows, "deaths": 0, "start_seconds": 1.0}
    return {
        "totals": totals,
        "running": 4,
        "capacity": 8,
        "workers": workers,
        "workers_ready": workers,
        "deaths": 0,
        "timeline": {},
        "per_worker": {f"w{i}": per_worker for i in range(workers)},
    }


def write_run(path, run_id: str, rows: int, ended: bool = True, before: int = 0, ago: float = 100.0, **changes) -> dict:
    """The record of a run that took a minute: one that has ended, or one that was killed; returns it."""
    start = time.time() - ago
    marks = {"command": 0, "checked": 1, "ray_ready": 5, "model_ready": 9, "worker_process": 10, "engine_ready": 12}
    timeline = {name: start + seconds for name, seconds in marks.items()} | {"first_row": start + 14}
    summary = Summary(rows=rows, rows_done_before=before, written=PartReport(rows=rows - before), timeline=timeline)
    record = RunRecord(OutputFolder(str(path)), run_id, summary)
    record._fixed["started"] = start
    for step in range(0, 11):
        record.update(snapshot((rows - before) * step // 10))
        record._samples[-1][0] = start + 12 + 5 * step
    if ended:
        timeline["end"] = start + 60
        record._settle("finished", "")
    content = record._content | {"updated": start + 60} | changes
    (path / "_hfray").mkdir(exist_ok=True)
    (path / "_hfray" / f"run-{run_id}.json").write_text(json.dumps(content))
    return content


def write_settings(path, fingerprint: dict | None = None, **settings) -> None:
    """run.json."""
    about = {"settings": settings, "fingerprint": fingerprint or {}, "versions": {"hfray": "0.1.0"}}
    (path / "_hfray" / "run.json").write_text(json.dumps(about))
