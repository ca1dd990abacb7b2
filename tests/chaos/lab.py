"""Runs jobs over one table, and compares a disturbed job with an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.dataset as ds

from tests.chaos.outcome import Outcome
from tests.processes import MARK

# A step of 16 rows takes 0.4 s, and a file is written every 2 s: a fault at a random moment hits every stage of a job.
SLOW = (
    "conf=fake",
    "backend.step_seconds=0.4",
    "backend.batch_size=16",
    "workers.rows_per_block=16",
    "output.flush_seconds=2",
    "workers.size=2",
    "workers.cpus=1",
)
RUN_SECONDS = 300


@dataclass
class Lab:
    """A folder with a table, and the jobs that run over the table.

    Attributes:
        folder: for the table and all outputs.
        times: how often a fault is injected.
        rows: of the table.
        random: decides the moments of the faults.
    """

    folder: Path
    times: int
    rows: int
    random: random.Random
    _texts: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table, self._log = self.folder / "in.jsonl", self.folder / "answers.log"
        self.table.write_text("".join(json.dumps({"question": f"row number {i}"}) + "\n" for i in range(self.rows)))

    def start(
        self, output: Path, settings: Sequence[str] = SLOW, table: Path | None = None, mark: str = ""
    ) -> subprocess.Popen[str]:
        """Start a job as users do, in a process group of its own.

        Args:
            mark: the value of MARK in the environment of all its processes.
        """
        places = [f"input.path={table or self.table}", f"output.path={output}"]
        logged = [f"backend.answer_log={self._log}"] if "conf=fake" in settings else []
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.batch", *places, *settings, *logged],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {MARK: mark},
            process_group=0,
        )

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Wait for a job that must succeed. Raises RuntimeError if it fails."""
        _, stderr = process.communicate(timeout=RUN_SECONDS)
        if process.returncode:
            raise RuntimeError(f"the job ended with {process.returncode}: {stderr[-2000:]}")

    def expect(self, outcome: Outcome, process: subprocess.Popen[str], code: int, words: str = "") -> None:
        """Wait for a job that must end with this exit code, and with these words on stderr."""
        _, stderr = process.communicate(timeout=RUN_SECONDS)
        if process.returncode != code or words not in stderr or "Traceback" in stderr:
            outcome.surprises.append(f"ended with {process.returncode}: {stderr[-300:]}")

    def wait_for_file(self, output: Path, process: subprocess.Popen[str], before: int = 0) -> bool:
        """Wait until the job has more than `before` files; returns whether it is still running."""
        deadline = time.monotonic() + RUN_SECONDS
        while process.poll() is None and self.count_files(output) <= before:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the job wrote no file within {RUN_SECONDS} s")
            time.sleep(0.2)
        return process.poll() is None

    def count_files(self, output: Path) -> int:
        """Finished files of an output folder."""
        return len(list(output.glob("*.parquet")))

    def texts_of(self, output: Path) -> list[tuple[str, str, str | None]]:
        """(row id, text, error) of every output row."""
        table = ds.dataset(str(output), ignore_prefixes=["_", "."], exclude_invalid_files=False).to_table()
        return [(row["row_id"], row["generated_text"], row["error"]) for row in table.to_pylist()]

    def wanted(self, settings: Sequence[str] = SLOW) -> dict[str, str]:
        """The texts by row id of an undisturbed job. The first call runs the job."""
        key = tuple(settings)
        if key not in self._texts:
            output = self.folder / f"undisturbed-{len(self._texts)}"
            self.finish(self.start(output, settings))
            self._take_log()
            self._texts[key] = {row_id: text for row_id, text, _ in self.texts_of(output)}
        return self._texts[key]

    def judge(
        self, outcome: Outcome, output: Path, settings: Sequence[str] = SLOW, planted: Collection[str] = ()
    ) -> Outcome:
        """Compare an output with the undisturbed texts; the rows in `planted` must be error rows, and no others."""
        answered, wanted = self._take_log(), self.wanted(settings)
        rows = self.texts_of(output)
        ids = [row_id for row_id, _, _ in rows]
        outcome.lost = len(wanted.keys() - set(ids))
        outcome.repeated = len(ids) - len(set(ids))
        outcome.wrong = sum(text != wanted.get(row_id) for row_id, text, error in rows if error is None)
        outcome.unplanned_errors = len({row_id for row_id, _, error in rows if error is not None} ^ set(planted))
        outcome.extra = 100 * (answered - self.rows) / self.rows if answered else None
        return outcome

    def _take_log(self) -> int:
        """Rows that the engines answered since the last call."""
        count = len(self._log.read_bytes().splitlines()) if self._log.exists() else 0
        self._log.unlink(missing_ok=True)
        return count
