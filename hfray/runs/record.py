"""The record of one run in an output folder: `_hfray/run-ID.json`. A resumed folder holds one record for each run."""

from __future__ import annotations

import posixpath
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from pyarrow import fs

from hfray.data.output import OWN, OutputFolder
from hfray.runs.fromjson import from_json
from hfray.runs.liveness import ProcessMark
from hfray.runs.snapshot import PoolCounts, Snapshot, Totals, WorkerCounts
from hfray.runs.summary import RunState, Summary
from hfray.runs.timeleft import Estimate

SILENT_SECONDS = 60.0  # a run on another machine counts as stopped when its record is older than this


@dataclass(slots=True)
class Sample:
    """The counters at one moment, for charts and rates.

    `pools` are the (prompt, generated) tokens of each pool; empty if there is one pool only.
    """

    time: float = 0.0
    rows: int = 0
    failed_rows: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    running: int = 0
    capacity: int = 0
    workers_ready: int = 0
    pools: dict[str, tuple[int, int]] = field(default_factory=dict)


SAMPLE_FIELDS = tuple(column.name for column in fields(Sample) if column.name != "pools")


@dataclass(slots=True)
class RunRecord:
    """One run: its process, how far it is, and its counters over time.

    Args:
        summary: how the run went so far; its `status` is "running" until the run ends.
        updated: `time.time()` of the last write of the record.
        left: the time left, estimated at `estimated`; None while there is no estimate, and after the end.
        state: see `state_of`; only set by `read_runs`.
    """

    run_id: str = ""
    host: str = ""
    pid: int = 0
    process_started: float = 0.0
    process_birth: str | None = None
    started: float = 0.0
    updated: float = 0.0
    stage: str = "starting"
    summary: Summary = field(default_factory=Summary)
    snapshot: Snapshot = field(default_factory=Snapshot)
    samples: list[Sample] = field(default_factory=list)
    left: Estimate | None = None
    estimated: float = 0.0
    state: str = ""

    def to_json(self) -> dict[str, object]:
        """The record as JSON values: the summary's keys and the record's own, side by side."""
        summary, snapshot = self.summary.to_json(), self.snapshot
        written = self.summary.written.to_json()
        written.pop("samples", None)
        process = {name: getattr(self, name) for name in PROCESS_FIELDS}
        return (
            summary
            | process
            | {
                "written": written,
                "timeline": snapshot.timeline | self.summary.timeline,
                "totals": asdict(snapshot.totals),
                "workers": {name: asdict(worker) for name, worker in snapshot.per_worker.items()},
                "pools": {name: asdict(pool) for name, pool in snapshot.pools.items()},
                "now": {name: getattr(snapshot, name) for name in NOW_FIELDS},
                "samples": {
                    "fields": SAMPLE_FIELDS,
                    "points": [[getattr(sample, name) for name in SAMPLE_FIELDS] for sample in self.samples],
                }
                | _pool_columns(self.samples),
                "left": asdict(self.left) if self.left else None,
            }
        )

    @classmethod
    def from_json(cls, values: object) -> RunRecord:
        """A record from what `to_json` gave, in this version or another; missing keys keep their defaults.

        The file has one timeline; it comes back as the summary's.

        Raises:
            ValueError: the values are not a record; the message names the key.
        """
        if not isinstance(values, Mapping):
            raise ValueError("not a JSON object")
        own = {name: values[name] for name in PROCESS_FIELDS if name in values}
        now = from_json(dict[str, int], values.get("now", {}))
        snapshot = Snapshot(
            totals=from_json(Totals, values.get("totals", {})),
            per_worker=from_json(dict[str, WorkerCounts], values.get("workers", {})),
            pools=from_json(dict[str, PoolCounts], values.get("pools", {})),
            running=now.get("running", 0),
            capacity=now.get("capacity", 0),
            workers_ready=now.get("workers_ready", 0),
            deaths=now.get("deaths", 0),
        )
        snapshot.workers = len(snapshot.per_worker)
        record = from_json(cls, own)
        record.summary = Summary.from_json({"status": RunState.RUNNING, **values})
        record.snapshot, record.samples = snapshot, _samples(values.get("samples", {}))
        record.left = from_json(Estimate, values["left"]) if values.get("left") else None
        return record


PROCESS_FIELDS = (
    "run_id",
    "host",
    "pid",
    "process_started",
    "process_birth",
    "started",
    "updated",
    "stage",
    "estimated",
)
NOW_FIELDS = ("running", "capacity", "workers_ready", "deaths")


def _pool_columns(samples: list[Sample]) -> dict[str, object]:
    """For each pool its tokens at every sample; zeros before its first worker started. Empty without pools."""
    names = samples[-1].pools if samples else ()
    columns = {name: [sample.pools.get(name, (0, 0)) for sample in samples] for name in names}
    return {"pools": columns} if columns else {}


def _samples(table: object) -> list[Sample]:
    columns = from_json(_SampleTable, table)
    samples = [from_json(Sample, dict(zip(columns.fields, point, strict=False))) for point in columns.points]
    for name, tokens in columns.pools.items():
        for sample, both in zip(samples, tokens, strict=False):
            sample.pools[name] = both
    return samples


@dataclass(slots=True)
class _SampleTable:
    fields: list[str] = field(default_factory=list)
    points: list[list[float]] = field(default_factory=list)
    pools: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


def read_runs(output: OutputFolder, key: str = "output.path") -> list[RunRecord]:
    """The records of all runs of a folder, oldest first, each with its `state`.

    Raises:
        SettingsError: a record is damaged; `key` is the setting that names the folder.
    """
    infos = output.filesystem.get_file_info(fs.FileSelector(f"{output.root}/{OWN}", allow_not_found=True))
    names = [posixpath.basename(info.path) for info in infos]
    runs = [_read_run(output, name, key) for name in names if re.fullmatch(r"run-\w+\.json", name)]
    return sorted(runs, key=lambda run: run.started)


def _read_run(output: OutputFolder, name: str, key: str) -> RunRecord:
    remedy = "Delete the file: it only describes a run, and the rows are kept"
    values = output.read_json(name, remedy, key)
    try:
        run = RunRecord.from_json(values)
    except ValueError as error:
        raise output.damaged(name, error, remedy, key) from error
    run.state = state_of(run)
    return run


def state_of(run: RunRecord) -> str:
    """The status that a run wrote at its end; for a run that wrote none, "running" while it lives, else "stopped".

    A run on this machine lives while its process lives. A run on another machine lives while it updates its record.
    """
    if run.summary.status != RunState.RUNNING:
        return run.summary.status
    process = ProcessMark(run.host, run.pid, run.process_started, run.process_birth)
    alive = process.lives() if process.is_here else time.time() - run.updated < SILENT_SECONDS
    return RunState.RUNNING if alive else RunState.STOPPED
