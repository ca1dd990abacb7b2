"""Jobs on the fake engine for tests: settings, tables and output rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds

from hfray.batch.job import run_batch
from hfray.runs.summary import Summary
from tests.conftest import batch_settings
from tests.processes import Hold

QUICK = ["conf=fake", "output.flush_seconds=0.5"]


def fake(name: str, seconds: float = 0.0, hold: Hold | None = None, **more: object) -> str:
    """A pool of fake engines of 16 rows, in Hydra's grammar."""
    backend = {"name": "fake", "batch_size": 16, "step_seconds": seconds} | (hold.backend if hold else {})
    own = {"name": name, "rows_per_block": 16, "backend": backend}
    return json.dumps(own | more).replace('"', "")


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rows_of(output):
    table = ds.dataset(str(output), exclude_invalid_files=False, ignore_prefixes=["_"]).to_table()
    return sorted(table.to_pylist(), key=lambda row: row["row_id"])


def run_pools(path, output, *pools: str, overrides=()) -> Summary:
    """Run a job with pools made by `fake`."""
    workers = f"workers=[{', '.join(pools)}]"
    settings = batch_settings(f"input.path={path}", f"output.path={output}", *QUICK, workers, *overrides)
    return run_batch(settings)


def run_fake(path, output, *overrides: str) -> Summary:
    """Run a job with one pool."""
    return run_batch(batch_settings(f"input.path={path}", f"output.path={output}", *QUICK, *overrides))


def table(tmp_path: Path, rows: int) -> Path:
    """A JSONL file with `rows` questions."""
    return write(tmp_path / "in.jsonl", [{"question": f"row {i}"} for i in range(rows)])


def check_rows(output: Path, rows: int) -> None:
    """Check that every row has exactly one output row."""
    found = rows_of(output)
    assert len({row["row_id"] for row in found}) == len(found) == rows
