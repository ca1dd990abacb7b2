"""How far a run is, read from its output folder: the records of its runs, and the rows in the finished files."""

from __future__ import annotations

import time
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

from pydantic.dataclasses import dataclass

from hfray.config.engine import STRICT
from hfray.data.output import OutputFolder
from hfray.errors import SettingsError
from hfray.runs.contents import count_rows
from hfray.runs.record import RunRecord, Sample, read_runs
from hfray.runs.recorder import BEAT_SECONDS
from hfray.runs.summary import RunState
from hfray.runs.timeleft import Estimate
from hfray.runs.words import (
    duration,
    engine_words,
    left_words,
    pace_words,
    pool_words,
    precision_words,
    token_words,
)

RATE_SECONDS = 60.0
HEADLINES: dict[str, str] = {
    RunState.RUNNING: "running",
    RunState.STOPPED: "stopped without a message (killed, or its machine is gone); run the same command to resume",
    RunState.FINISHED: "finished",
    RunState.INTERRUPTED: "interrupted; run the same command to resume",
    RunState.FAILED: "failed; the finished rows are kept; run the same command to resume",
    RunState.TOO_MANY_ERRORS: "stopped because too many rows failed; the finished rows are kept",
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StatusOutput:
    """The folder to look at."""

    path: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StatusSettings:
    """What `jobs.status` takes."""

    ROOT: ClassVar[str] = "status"

    output: StatusOutput


@plain_dataclass(frozen=True, slots=True)
class Status:
    """The newest run of a folder.

    Attributes:
        rows: rows of the newest run's input.
        rows_written: how many of these are in finished files, of all runs.
        other_rows: rows in finished files that are not in the newest run's input.
    """

    state: str
    rows: int
    rows_written: int
    rows_answered: int
    other_rows: int
    failed: int
    record: RunRecord
    runs: int

    @property
    def complete(self) -> bool:
        """Whether the folder has as many rows as the input."""
        return self.rows_written >= self.rows

    @property
    def silent_seconds(self) -> float:
        """Seconds since the record was last written."""
        return max(0.0, time.time() - self.record.updated)


def read_status(path: str) -> Status:
    """Look at an output folder.

    Raises:
        SettingsError: the folder is not an hfray output folder, or cannot be read.
    """
    output = OutputFolder(path)
    try:
        runs, written = read_runs(output), count_rows(output)
    except OSError as error:
        raise SettingsError(f"output.path={path}: cannot be read ({error}). Check the path.") from error
    if not runs:
        what = "holds Parquet files, but no record of the run that wrote them" if written else "holds no run"
        raise SettingsError(f"output.path={path}: {what}. Name the folder that a job got as output.path.")
    record = runs[-1]
    summary, totals = record.summary, record.snapshot.totals
    here = totals.rows if record.state == RunState.RUNNING else 0
    other = max(0, written.total() - written[record.run_id] - summary.rows_done_before)
    in_files = written.total() - other
    return Status(
        state=record.state,
        rows=summary.rows,
        rows_written=in_files,
        rows_answered=max(in_files, summary.rows_done_before + here),
        other_rows=other,
        failed=max(summary.failed_total, totals.failed_rows),
        record=record,
        runs=len(runs),
    )


def describe(status: Status) -> list[str]:
    """The status in a few lines for people."""
    record = status.record
    headline = HEADLINES.get(status.state, status.state)
    if status.state == RunState.RUNNING:
        headline = f"running: {record.stage}, for {duration(time.time() - record.started)}"
        if status.silent_seconds > 3 * BEAT_SECONDS:
            headline += f"; the process lives, but has reported nothing for {duration(status.silent_seconds)}"
    elif status.state == RunState.FINISHED and not status.complete:
        headline = "finished, but rows are missing from the folder; run the same command to do them again"
    lines = [headline]
    if record.summary.message:
        lines.append(record.summary.message)
    done = status.rows_answered if status.state == RunState.RUNNING else status.rows_written
    rows = f"{done:,} of {status.rows:,} rows"
    rows += f" ({done / status.rows:.1%})" if status.rows else ""
    if status.rows_written < done:
        rows += f", {status.rows_written:,} of them in finished files"
    lines.append(f"{rows}, {status.failed:,} failed")
    if status.other_rows:
        lines.append(
            f"the folder also holds {status.other_rows:,} rows that the last run's input did not contain "
            "(a smaller input.limit, or rows that were removed from the input)"
        )
    if status.state == RunState.RUNNING:
        lines += _pace(record)
    else:
        lines.append(f"last update {duration(status.silent_seconds)} ago")
    precisions = record.snapshot.precisions
    if precisions:
        lines.append(f"computes in {precision_words(precisions)}")
    for name, pool in record.snapshot.pools.items():
        pace = f"; now {token_words(*_pool_rates(record, name))}" if status.state == RunState.RUNNING else ""
        lines.append(f"pool {name}: {pool_words(pool)}{pace}")
    if status.runs > 1:
        lines.append(f"{status.runs} runs so far")
    return lines


def _pace(record: RunRecord) -> list[str]:
    """Rates of the last minute, workers and time left of a run that lives."""
    window = _last_minute(record)
    if not window:
        return []
    then, now, seconds = window
    rates = [
        max(0, after - before) / seconds
        for before, after in (
            (then.rows, now.rows),
            (then.prompt_tokens, now.prompt_tokens),
            (then.generated_tokens, now.generated_tokens),
        )
    ]
    workers = len(record.snapshot.per_worker)
    parts = [pace_words(*rates), engine_words(now.workers_ready, workers, now.running, now.capacity)]
    parts.append(left_words(_left_now(record)))
    return ["  ".join(filter(None, parts))]


def _pool_rates(record: RunRecord, pool: str) -> tuple[float, float]:
    """Prompt and generated tokens per second of a pool in the last minute."""
    window = _last_minute(record)
    if not window:
        return 0.0, 0.0
    then, now, seconds = window
    pairs = zip(then.pools.get(pool, (0, 0)), now.pools.get(pool, (0, 0)), strict=True)
    prompts, generated = (max(0, after - before) / seconds for before, after in pairs)
    return prompts, generated


def _last_minute(record: RunRecord) -> tuple[Sample, Sample, float] | None:
    """The first and the last sample of the last minute with ready workers, and the seconds between them."""
    ready = [sample for sample in record.samples if sample.workers_ready]
    if len(ready) < 2:
        return None
    now = ready[-1]
    then = next(sample for sample in ready if now.time - sample.time <= RATE_SECONDS or sample is now)
    return then, now, max(now.time - then.time, 1e-3)


def _left_now(record: RunRecord) -> Estimate | None:
    """The run's own estimate, less the time since it was made."""
    if record.left is None:
        return None
    return Estimate(max(0.0, record.left.seconds - (time.time() - record.estimated)), record.left.at_most)
