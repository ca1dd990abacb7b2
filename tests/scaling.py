"""Weak scaling on the fake engine: the same number of rows per worker, 1 to 8 workers, a fixed time per row.

python -m tests.scaling [--rows N] [--workers 1 2 4 8]

The engine only sleeps, so that one machine can hold the workers of many. The result shows how many workers the driver,
Ray Data and the Monitor can keep busy.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path

import ray
from rich.console import Console
from rich.table import Table

from hfray.batch.job import run_batch
from tests.conftest import batch_settings

COST = ["conf=fake", "backend.step_seconds=0.25", "backend.batch_size=64", "workers.cpus=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000, help="for each worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    table = Table("workers", "rows", "rows/s", "efficiency", "share of full steps", "driver's memory, MiB")
    ray.init("local", num_cpus=2 + max(arguments.workers), include_dashboard=False, logging_level="ERROR")
    base = None
    with tempfile.TemporaryDirectory() as folder:
        for workers in arguments.workers:
            rows, path = arguments.rows * workers, Path(folder) / f"{workers}.jsonl"
            path.write_text("".join(json.dumps({"question": f"Number {i}?"}) + "\n" for i in range(rows)))
            where = [f"input.path={path}", f"output.path={folder}/out-{workers}"]
            summary = run_batch(batch_settings(*where, f"workers.size={workers}", *COST))
            rate = summary.written.rows / summary.generating_seconds
            base = base or rate / workers
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            full = summary.engine.share_of_full_steps
            table.add_row(
                str(workers),
                f"{rows:,}",
                f"{rate:,.0f}",
                f"{rate / workers / base:.2f}",
                f"{full:.0%}",
                f"{memory:,.0f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
