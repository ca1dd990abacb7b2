"""The record of each run in an output folder: `_hfray/run-ID.json`, kept up to date while the run lives.

A run that is killed writes nothing more, so what is known of it is what it wrote while it ran. A folder that was
resumed holds a record for each of its runs.
"""

from __future__ import annotations

import os
import posixpath
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import psutil
from pyarrow import fs

from hfray.data.output import OWN, OutputFolder, PartReport

if TYPE_CHECKING:
    pass


OK, FAILED, UNUSABLE, TOO_MANY_ERRORS, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(slots=True)
class Summary:
    """How a run went, as in `_hfray/summary.json`; `exit_code` as in the README."""

    exit_code: int = OK
    status: str = "finished"
    message: str = ""
    output: str = ""
    rows: int = 0
    rows_done_before: int = 0
    written: PartReport = field(default_factory=PartReport)
    failed_total: int = 0
    seconds: float = 0.0
    engine: dict[str, Any] = field(default_factory=dict)
    timeline: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; rates are per second of the time in which the engine was ready."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["written"] = self.written.to_json()
        busy = self.generating_seconds
        plain["rates"] = {
            "rows_per_second": self.written.rows / busy if busy else None,
            "prompt_tokens_per_second": self.written.prompt_tokens / busy if busy else None,
            "generated_tokens_per_second": self.written.generated_tokens / busy if busy else None,
        }
        return plain

    @property
    def generating_seconds(self) -> float:
        """From the first engine's being ready to the last row's being answered."""
        ready, last = self.timeline.get("engine_ready"), self.timeline.get("last_row")
        return 0.0 if ready is None or last is None else max(0.0, last - ready)


BEAT_SECONDS = 5.0  # between two writes of the record
SILENT_SECONDS = 60.0  # a run on another machine that wrote nothing for so long counts as stopped
MAX_SAMPLES = 400  # points in time; when there are more, every second one is dropped
SAMPLE_FIELDS = (
    "time",
    "rows",
    "failed_rows",
    "prompt_tokens",
    "generated_tokens",
    "running",
    "capacity",
    "workers_ready",
)
RUNNING, FAILED, STOPPED = "running", "failed", "stopped"


class RunRecord:
    """A context in which a run's record is written every few seconds, and a last time at its end.

    Args:
        summary: the run's; whoever changes it calls `update` or `enter_stage` for the record to follow.
    """

    def __init__(self, output: OutputFolder, run_id: str, summary: Summary) -> None:
        self._output, self._summary = output, summary
        self.run_id, self._name = run_id, f"run-{run_id}.json"
        self._fixed = {
            "run_id": run_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "started": summary.timeline["command"],
        }
        self._stage = "starting"
        self._samples: list[list[float]] = []
        self._interval, self._snapshot = 0.0, {}
        self._content: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-record", daemon=True)

    def __enter__(self) -> RunRecord:
        self.enter_stage(self._stage)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        status, message = self._summary.status, self._summary.message
        if error is not None:
            status, message = FAILED, str(error) or type(error).__name__
        self._settle(status, message)
        self._write()

    def enter_stage(self, stage: str) -> None:
        """Say what the run is at: "preparing the model", "generating", ..."""
        self._stage = stage
        self._settle(RUNNING, "")

    def update(self, snapshot: dict[str, Any]) -> None:
        """Take in the Monitor's latest snapshot."""
        self._snapshot = snapshot
        if snapshot.get("workers_ready"):
            self._stage = "generating"
        elif snapshot:
            self._stage = "starting workers"
        self._sample(snapshot)
        self._settle(RUNNING, "")

    def _sample(self, snapshot: dict[str, Any]) -> None:
        now = time.time()
        if self._samples and now - self._samples[-1][0] < self._interval:
            return
        known = snapshot.get("totals", {}) | snapshot | {"time": round(now, 2)}
        self._samples.append([known.get(name, 0) for name in SAMPLE_FIELDS])
        if len(self._samples) > MAX_SAMPLES:
            self._samples = self._samples[::2]
            self._interval = 2 * (self._samples[-1][0] - self._samples[0][0]) / MAX_SAMPLES

    def _settle(self, status: str, message: str) -> None:
        """Make the content; on the caller's thread, which is the one that changes the summary."""
        summary, snapshot = self._summary, self._snapshot
        plain = summary.to_json()
        plain["written"].pop("samples", None)
        parts = {"totals": "totals", "workers": "per_worker", "pools": "pools"}
        known = {name: snapshot.get(key, {}) for name, key in parts.items()}
        now = {name: snapshot.get(name, 0) for name in ("running", "capacity", "workers_ready", "deaths")}
        plain["timeline"] = snapshot.get("timeline", {}) | plain["timeline"]
        self._content = plain | self._fixed | known | {"now": now, "stage": self._stage}
        self._content |= {"status": status, "message": message}
        self._content |= {"samples": {"fields": SAMPLE_FIELDS, "points": list(self._samples)}}

    def _write(self) -> None:
        try:
            self._output.write_json(self._name, self._content | {"updated": time.time()})
        except Exception as error:  # the record is for people; the rows themselves are written, or fail, elsewhere
            print(f"hfray: {self._name} cannot be written: {error}", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._write()


def read_runs(output: OutputFolder) -> list[dict[str, Any]]:
    """The records of all runs of a folder, oldest first; each with its `state` (see `state_of`)."""
    infos = output.filesystem.get_file_info(fs.FileSelector(f"{output.root}/{OWN}", allow_not_found=True))
    names = [posixpath.basename(info.path) for info in infos]
    found = [output.read_json(name) for name in names if re.fullmatch(r"run-\w+\.json", name)]
    runs = sorted((run for run in found if run), key=lambda run: run["started"])
    for run in runs:
        run["state"] = state_of(run)
    return runs


def state_of(run: dict[str, Any]) -> str:
    """The status that a run gave itself at its end; of one that gave none: "running" while it lives, else "stopped".

    On this machine the process itself is looked for; one elsewhere lives for as long as its record is written anew.
    """
    if run["status"] != RUNNING:
        return run["status"]
    if run["host"] != socket.gethostname():
        return RUNNING if time.time() - run["updated"] < SILENT_SECONDS else STOPPED
    return RUNNING if process_lives(run["pid"], run["process_started"]) else STOPPED


def process_lives(pid: int, began: float) -> bool:
    """Whether the process of this machine that began then still lives; ids are used again."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - began) < 1
    except psutil.Error:
        return False
