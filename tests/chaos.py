"""Kill, starve and hang a job at random moments, and count what is lost, repeated, wrong or done twice.

python -m tests.chaos [--times N] [--rows N] [--seed S] [--only FAULT ...]

Each fault runs against the same table as an undisturbed run; the table printed at the end is the result. The `fake`
engine's rows take a fixed time, and its answer log counts every row answered, also those that a crash threw away.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from tests.processes import named

SLOW = [
    "conf=fake",
    "backend.step_seconds=0.4",
    "backend.batch_size=16",
    "workers.rows_per_block=16",
    "output.flush_seconds=2",
    "workers.size=2",
    "workers.cpus=1",
]
RUN_SECONDS = 300


@dataclass
class Outcome:
    """What a fault did."""

    fault: str
    injected: int = 0
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    unplanned_errors: int = 0
    extra: float | None = None
    notes: list[str] = field(default_factory=list)


class Chaos:
    """A table, an undisturbed run over it, and faults to compare with that."""

    def __init__(self, folder: Path, times: int, rows: int, seed: int) -> None:
        self.folder, self.times, self.rows, self.random = folder, times, rows, random.Random(seed)
        self.table = folder / "in.jsonl"
        self.table.write_text("".join(json.dumps({"question": f"row number {i}"}) + "\n" for i in range(rows)))
        self.log = folder / "answers.log"

    # --- running -----------------------------------------------------------------------------------------------

    def start(self, output: Path, *settings: str, log: bool = True) -> subprocess.Popen:
        """Start the job as its users do."""
        command = [sys.executable, "-m", "jobs.batch", f"input.path={self.table}", f"output.path={output}", *settings]
        command += [f"backend.answer_log={self.log}"] if log else []
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(self, process: subprocess.Popen) -> None:
        """Wait for a job's good end."""
        _, stderr = process.communicate(timeout=RUN_SECONDS)
        if process.returncode:
            raise RuntimeError(f"the job ended with {process.returncode}: {stderr[-2000:]}")

    def answered(self) -> int:
        """Rows answered since the log was last emptied."""
        count = len(self.log.read_bytes().splitlines()) if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return count

    def texts(self, output: Path) -> list[tuple[str, str | None, str | None]]:
        """(row id, text, error) of every output row."""
        table = ds.dataset(str(output), ignore_prefixes=["_"], exclude_invalid_files=False).to_table()
        return [(r["row_id"], r["generated_text"], r["error"]) for r in table.to_pylist()]

    def judge(self, outcome: Outcome, output: Path, wanted: dict[str, str], planted: set[str] = frozenset()) -> Outcome:
        """Compare an output with the undisturbed texts."""
        rows = self.texts(output)
        ids = [row_id for row_id, _, _ in rows]
        outcome.lost = len(wanted.keys() - set(ids))
        outcome.repeated = len(ids) - len(set(ids))
        outcome.wrong = sum(text != wanted[row_id] for row_id, text, error in rows if error is None)
        outcome.unplanned_errors = len({row_id for row_id, _, error in rows if error is not None} ^ planted)
        return outcome

    # --- faults ------------------------------------------------------------------------------------------------

    def undisturbed(self, *settings: str, log: bool = True) -> dict[str, str]:
        """The texts that every disturbed run must have."""
        output = self.folder / f"undisturbed-{len(settings)}"
        self.finish(self.start(output, *settings, log=log))
        self.answered()
        return {row_id: text for row_id, text, _ in self.texts(output)}

    def kill_workers(self, wanted: dict[str, str], settings: list[str] = SLOW, times: int | None = None) -> Outcome:
        """kill -9 of one worker after another in one run."""
        outcome, output = Outcome("kill -9 a worker"), self.folder / f"workers-{len(settings)}"
        process = self.start(output, *settings, log=settings is SLOW)
        while process.poll() is None and outcome.injected < (times or self.times):
            time.sleep(self.random.uniform(0.5, 2.5))
            workers = named(process.pid, "BatchWorker")
            if workers and list(output.glob("*.parquet")):
                self.random.choice(workers).kill()
                outcome.injected += 1
        self.finish(process)
        return self._with_extra(self.judge(outcome, output, wanted))

    def kill_drivers(self, wanted: dict[str, str], settings: list[str] = SLOW, times: int | None = None) -> Outcome:
        """kill -9 of the driver, each time followed by the same command."""
        outcome, output = Outcome("kill -9 the driver"), self.folder / f"drivers-{len(settings)}"
        while outcome.injected < (times or self.times):
            process = self.start(output, *settings, log=settings is SLOW)
            before = len(list(output.glob("*.parquet")))
            deadline = time.monotonic() + RUN_SECONDS
            while (
                process.poll() is None and len(list(output.glob("*.parquet"))) == before and time.monotonic() < deadline
            ):
                time.sleep(0.2)
            time.sleep(self.random.uniform(0.0, 1.5))
            if process.poll() is not None:
                outcome.notes.append(f"the table was done after {outcome.injected}")
                break
            process.kill()
            process.communicate()
            outcome.injected += 1
        self.finish(self.start(output, *settings, log=settings is SLOW))
        return self._with_extra(self.judge(outcome, output, wanted))

    def kill_everything(self, wanted: dict[str, str]) -> Outcome:
        """kill -9 of the driver and every process that it started, at once."""
        outcome, output = Outcome("kill -9 everything at once"), self.folder / "everything"
        for _ in range(2):
            process = self.start(output, *SLOW)
            before = len(list(output.glob("*.parquet")))
            while process.poll() is None and len(list(output.glob("*.parquet"))) == before:
                time.sleep(0.2)
            for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                child.kill()
            process.communicate()
            outcome.injected += 1
        self.finish(self.start(output, *SLOW))
        return self._with_extra(self.judge(outcome, output, wanted))

    def remove_nodes(self, wanted: dict[str, str], times: int = 3) -> Outcome:
        """kill -9 of the raylet of a node with a worker, in a cluster of three nodes on this machine, several times."""
        from ray.cluster_utils import Cluster

        outcome, output = Outcome("kill -9 a node's raylet"), self.folder / "nodes"
        size = {"object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **size})
        try:
            nodes = [cluster.add_node(num_cpus=1, resources={"pool": 1}, **size) for _ in range(2)]
            cluster.wait_for_nodes()
            on_pool = [*SLOW, f"ray.address={cluster.address}", "+workers.resources.pool=0.5", "workers.cpus=1"]
            on_pool = [s.replace("+workers", "workers") for s in on_pool]
            process = self.start(output, *on_pool)
            while process.poll() is None and outcome.injected < times:
                before = len(list(output.glob("*.parquet")))
                while process.poll() is None and len(list(output.glob("*.parquet"))) == before:
                    time.sleep(0.2)
                if process.poll() is None:
                    victim = nodes.pop(0)
                    victim.all_processes["raylet"][0].process.kill()
                    outcome.injected += 1
                    nodes.append(cluster.add_node(num_cpus=1, resources={"pool": 1}, **size))
            self.finish(process)
        finally:
            cluster.shutdown()
        return self._with_extra(self.judge(outcome, output, wanted))

    def poison(self, wanted: dict[str, str]) -> Outcome:
        """Rows that end their worker's process."""
        planted = {"in.jsonl:77", "in.jsonl:333"}
        outcome, output = Outcome("poison rows", injected=len(planted)), self.folder / "poison"
        self.finish(self.start(output, *SLOW, "backend.die_on='row number (77|333)\\b'"))
        return self._with_extra(self.judge(outcome, output, wanted, planted))

    def hang(self, wanted: dict[str, str]) -> Outcome:
        """A row that hangs the engine."""
        outcome, output = Outcome("hung engine", injected=1), self.folder / "hang"
        self.finish(self.start(output, *SLOW, "backend.hang_on='row number 123\\b'", "workers.step_timeout=3"))
        return self._with_extra(self.judge(outcome, output, wanted, {"in.jsonl:123"}))

    def full_disk(self, wanted: dict[str, str]) -> Outcome:
        """A disk that fills up in mid-run; with room again, the same command goes on."""
        outcome, mount = Outcome("full disk", injected=1), self.folder / "small"
        mount.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], check=False)
        if done.returncode:
            outcome.notes.append("not run: no right to mount a small file system")
            outcome.injected = 0
            return outcome
        try:
            process = self.start(mount / "out", *SLOW)
            while process.poll() is None and not list((mount / "out").glob("*.parquet")):
                time.sleep(0.2)
            ballast = mount / "ballast"
            with contextlib.suppress(OSError), open(ballast, "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            _, stderr = process.communicate(timeout=RUN_SECONDS)
            if process.returncode != 1 or "No space left" not in stderr:
                outcome.notes.append(f"ended with {process.returncode}: {stderr[-300:]}")
            ballast.unlink(missing_ok=True)
            self.finish(self.start(mount / "out", *SLOW))
            return self._with_extra(self.judge(outcome, mount / "out", wanted))
        finally:
            subprocess.run(["umount", str(mount)], check=False)

    def _with_extra(self, outcome: Outcome) -> Outcome:
        answered = self.answered()
        outcome.extra = 100 * (answered - self.rows) / self.rows if answered else None
        return outcome


def print_table(outcomes: list[Outcome]) -> None:
    """The result, a row a fault."""
    names = ("fault", "times", "rows lost", "rows repeated", "wrong texts", "errors not planted", "extra work, %", "")
    table = Table(*names)
    for o in outcomes:
        extra = "" if o.extra is None else f"{o.extra:.1f}"
        numbers = (o.injected, o.lost, o.repeated, o.wrong, o.unplanned_errors)
        table.add_row(o.fault, *map(str, numbers), extra, "; ".join(o.notes))
    Console(width=160).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=None, help="faults, by method name")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(Path(folder), arguments.times, arguments.rows, arguments.seed)
        faults = [
            "kill_workers",
            "kill_drivers",
            "kill_everything",
            "remove_nodes",
            "poison",
            "hang",
            "full_disk",
            "real",
        ]
        wanted = chaos.undisturbed(*SLOW)
        for name in arguments.only or faults:
            if name == "real":
                outcomes += real(chaos)
            else:
                outcomes.append(getattr(chaos, name)(wanted))
            print_table(outcomes)
    bad = sum(o.lost + o.repeated + o.wrong + o.unplanned_errors for o in outcomes)
    return 1 if bad else 0


def real(chaos: Chaos) -> list[Outcome]:
    """A few of the faults with the real 135M model."""
    settings = [
        "generation.max_new_tokens=12",
        "input.limit=192",
        "output.flush_seconds=2",
        "workers.rows_per_block=16",
    ]
    wanted = chaos.undisturbed(*settings, log=False)
    workers = chaos.kill_workers(wanted, settings, times=1)
    drivers = chaos.kill_drivers(wanted, settings, times=2)
    for outcome in (workers, drivers):
        outcome.fault += ", real model"
    return [workers, drivers]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
