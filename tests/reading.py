"""Time and memory of the tasks that read one large JSONL file.

python -m tests.reading [--gib N] [--tasks N]

Some slices, evenly spaced and with the first and the last, are read as the tasks of a job read them, each in a process
of its own. Neither time nor memory may grow with the slice's place in the file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table as Page

from hfray.config.batch import InputSettings
from hfray.data import readers
from hfray.data.scan import scan
from hfray.data.table import Table

ROW_CHARACTERS = 1000
ROWS_PER_BLOCK = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the file")
    parser.add_argument("--tasks", type=int, default=8, help="how many slices are read")
    arguments = parser.parse_args()
    page = Page("slice", "rows", "CPU seconds", "peak memory, MiB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jsonl"
        write(path, int(arguments.gib * (1 << 30)))
        started = time.perf_counter()
        table = scan(InputSettings(path=str(path)))
        seconds = time.perf_counter() - started
        last = len(table.slices) - 1
        chosen = sorted({last * number // max(1, arguments.tasks - 1) for number in range(arguments.tasks)})
        # A fresh process for every slice, because the peak of a process never falls.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
            for number in chosen:
                rows, cpu, memory = processes.submit(read, table, number).result()
                page.add_row(str(number), f"{rows:,}", f"{cpu:.2f}", f"{memory:,.0f}")
    console = Console(width=100)
    console.print(page)
    console.print(f"{len(table.slices)} slices, {table.num_rows:,} rows, scanned in {seconds:.1f} s")


def write(path: Path, size: int) -> None:
    """Write a JSONL file of about `size` bytes."""
    with path.open("w") as file:
        number = 0
        while file.tell() < size:
            rows = [{"n": n, "question": f"{n} ".ljust(ROW_CHARACTERS, "x")} for n in range(number, number + 10_000)]
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            number += len(rows)


def read(table: Table, number: int) -> tuple[int, float, float]:
    """(rows, CPU seconds, peak memory of the process in MiB) of reading one slice."""
    started = time.process_time()
    rows = sum(block.num_rows for block in readers.read(table, table.slices[number], ROWS_PER_BLOCK))
    return rows, time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
