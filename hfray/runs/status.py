"""How far a run is, from its folder alone: the runs' records, and the rows in the finished files."""

from __future__ import annotations

import time
from dataclasses import dataclass as plain_dataclass
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from hfray.config.engine import STRICT
from hfray.data.output import OutputFolder
from hfray.errors import SettingsError
from hfray.runs.contents import count_rows
from hfray.runs.pace import TimeLeft
from hfray.runs.record import BEAT_SECONDS, RUNNING, SAMPLE_FIELDS, STOPPED, read_runs
from hfray.runs.words import coarse, duration, engine_words, pace_words, pool_words

RATE_SECONDS = 60.0
HEADLINES = {
    RUNNING: "running",
    STOPPED: "stopped without a word (killed, or its machine went away); the same command goes on from there",
    "finished": "finished",
    "interrupted": "interrupted; the same command goes on from there",
    "failed": "failed; what is done is kept, and the same command goes on from there",
    "too many errors": "ended with too many errors; what is done is kept",
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StatusOutput:
    """The folder to look at."""

    path: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StatusSettings:
    """What `jobs.status` takes."""

    ROOT: ClassVar = "status"

    output: StatusOutput


@plain_dataclass(frozen=True, slots=True)
class Status:
    """A folder's newest run; `rows_written` are in finished files, whichever run wrote them."""

    state: str
    rows: int
    rows_written: int
    rows_answered: int
    failed: int
    record: dict[str, Any]
    runs: int

    @property
    def complete(self) -> bool:
        """Whether every row of the input has its row in the folder."""
        return self.rows_written >= self.rows

    @property
    def silent_seconds(self) -> float:
        """Since the record was last written."""
        return max(0.0, time.time() - self.record["updated"])


def read_status(path: str) -> Status:
    """Look at an output folder.

    Raises:
        SettingsError: it is none.
    """
    output = OutputFolder(path)
    try:
        runs, written = read_runs(output), count_rows(output)
    except OSError as error:
        raise SettingsError(f"output.path={path}: cannot be read ({error}). Check the path.") from error
    if not runs:
        what = "holds Parquet files, but no record of the run that made them" if written else "holds no run"
        raise SettingsError(f"output.path={path}: {what}. Name the folder that a job was given as output.path.")
    record = runs[-1]
    here = record["totals"].get("rows", 0) if record["state"] == RUNNING else 0
    return Status(
        state=record["state"],
        rows=record["rows"],
        rows_written=written.total(),
        rows_answered=max(written.total(), record["rows_done_before"] + here),
        failed=max(record["failed_total"], record["totals"].get("failed_rows", 0)),
        record=record,
        runs=len(runs),
    )


def describe(status: Status) -> list[str]:
    """The status in a few lines for people."""
    record = status.record
    headline = HEADLINES.get(status.state, status.state)
    if status.state == RUNNING:
        headline = f"running: {record['stage']}, for {duration(time.time() - record['started'])}"
        if status.silent_seconds > 3 * BEAT_SECONDS:
            headline += f"; its process is there, but has told nothing for {duration(status.silent_seconds)}"
    elif status.state == "finished" and not status.complete:
        headline = "finished, but rows are missing from the folder now; the same command does them again"
    lines = [headline]
    if record["message"]:
        lines.append(record["message"])
    done = status.rows_answered if status.state == RUNNING else status.rows_written
    rows = f"{done:,} of {status.rows:,} rows"
    rows += f" ({done / status.rows:.1%})" if status.rows else ""
    if status.rows_written < done:
        rows += f", {status.rows_written:,} of them in finished files"
    lines.append(f"{rows}, {status.failed:,} failed")
    if status.state == RUNNING:
        lines += _pace(record)
    else:
        lines.append(f"last sign of life {duration(status.silent_seconds)} ago")
    lines += [f"pool {name}: {pool_words(pool)}" for name, pool in record.get("pools", {}).items()]
    if status.runs > 1:
        lines.append(f"{status.runs} runs so far")
    return lines


def _pace(record: dict[str, Any]) -> list[str]:
    """Rates of the last minute, workers and time left of a run that lives."""
    points = [dict(zip(SAMPLE_FIELDS, point, strict=True)) for point in record["samples"]["points"]]
    ready = [point for point in points if point["workers_ready"]]
    if len(ready) < 2:
        return []
    now, left = ready[-1], TimeLeft()
    then = next(point for point in ready if now["time"] - point["time"] <= RATE_SECONDS or point is now)
    seconds = max(now["time"] - then["time"], 1e-3)
    rates = [max(0, now[name] - then[name]) / seconds for name in ("rows", "prompt_tokens", "generated_tokens")]
    remaining, found = record["rows"] - record["rows_done_before"], None
    for point in ready:
        found = left.update(point["time"], point["rows"], max(0, remaining - point["rows"]))
    ready_now = now["workers_ready"]
    parts = [pace_words(*rates), engine_words(ready_now, len(record["workers"]), now["running"], now["capacity"])]
    if found:
        parts.append(f"{coarse(found)} left")
    return ["  ".join(parts)]
