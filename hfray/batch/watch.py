"""Watches a run: shows and records its progress, stops it when it cannot succeed, and sums up what the engines did."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from hfray.config.batch import BatchSettings
from hfray.data.partreport import PartReport
from hfray.errors import JobError, SettingsError, TooManyErrorsError
from hfray.runs.about import add_to_about
from hfray.runs.recorder import RunRecorder
from hfray.runs.snapshot import PoolCounts, Snapshot
from hfray.runs.summary import EngineReport, PoolReport, SavedTokens, Summary
from hfray.runs.timeleft import TimeLeft
from hfray.runs.words import precision_words

if TYPE_CHECKING:
    from hfray.batch.preflight import Job
    from hfray.batch.progress import RunProgress
    from hfray.cluster.pools import Pool

ALL_FAILED_ROWS = 200  # written rows; if all of them failed, the run stops at once
LAST_SNAPSHOT_SECONDS = 5.0


class RunWatch:
    """Takes snapshots of the Monitor while the pipeline runs.

    Args:
        monitor: the Monitor's actor handle.
    """

    def __init__(
        self,
        job: Job,
        pools: Sequence[Pool[BatchSettings]],
        monitor: Any,
        summary: Summary,
        recorder: RunRecorder,
        progress: RunProgress,
    ) -> None:
        self._settings, self._pools, self._monitor, self._summary = job.settings, pools, monitor, summary
        self._output, self._earlier = job.output, set(job.precisions)
        self._precisions: set[str] = set()
        self._recorder, self._progress = recorder, progress
        self._snapshot, self._time_left = Snapshot(), TimeLeft()
        self._pending = monitor.snapshot.remote()

    def on_tick(self, report: PartReport) -> None:
        """Take in what has been written, and the snapshot if it has arrived.

        Raises:
            JobError, SettingsError: no worker can start.
            TooManyErrorsError: more rows failed than allowed.
        """
        import ray

        self._summary.written = report
        if ray.wait([self._pending], timeout=0)[0]:
            self._snapshot = cast(Snapshot, ray.get(self._pending))
            self._pending = self._monitor.snapshot.remote()
            rows = self._summary.rows - self._summary.rows_done_before - self._snapshot.totals.rows
            left = self._time_left.update(time.monotonic(), self._snapshot, rows)
            self._progress.update(self._snapshot, left)
            self._recorder.update(self._snapshot, left)
            self._note_precisions()
        stop_if_hopeless(self._settings, self._pools, self._summary, self._snapshot)

    def end(self) -> None:
        """Take the last snapshot and put it into the summary and the record."""
        import ray

        with contextlib.suppress(Exception):  # the run is over: without a last snapshot, the one before is good enough
            self._snapshot = cast(Snapshot, ray.get(self._monitor.snapshot.remote(), timeout=LAST_SNAPSHOT_SECONDS))
        self._summary.timeline |= self._snapshot.timeline
        self._summary.engine = engine_report(self._snapshot, self._pools, self._summary.timeline)
        self._recorder.update(self._snapshot)
        self._note_precisions()

    def _note_precisions(self) -> None:
        """Write what the engines compute in into run.json; say it if not all rows are computed alike."""
        found = self._snapshot.precisions
        if found.keys() <= self._precisions:
            return
        self._precisions |= found.keys()
        try:
            add_to_about(self._output, precisions=sorted(self._earlier | self._precisions))
        except OSError as error:  # run.json is for people: a failed write must not end the run
            print(f"hfray: cannot write run.json: {error}", file=sys.stderr, flush=True)
        note = unlike_precisions(found, self._earlier)
        if note:
            self._progress.say(note)


def stop_if_hopeless(
    settings: BatchSettings, pools: Sequence[Pool[BatchSettings]], summary: Summary, snapshot: Snapshot
) -> None:
    """Raise JobError, SettingsError or TooManyErrorsError if the run cannot succeed any more."""
    if snapshot.cannot_start:
        raise (SettingsError if snapshot.unusable else JobError)(snapshot.cannot_start)
    limit = settings.start_timeout
    if "engine_ready" not in snapshot.timeline and time.time() - summary.timeline["model_ready"] > limit:
        booked = "; or ".join(str(pool) for pool in pools)
        raise JobError(
            f"workers.start_timeout={limit:g}: no worker was ready within {limit:g} s. A worker books {booked}; "
            "`ray status` shows what is free on the cluster. Book less, add nodes, or raise workers.start_timeout."
        )
    allowed = settings.errors.max_fraction
    failed, rows = summary.failed_total + summary.written.failed, summary.written.rows
    all_failed = rows >= ALL_FAILED_ROWS and summary.written.failed == rows and allowed < 1
    if all_failed or failed > allowed * summary.rows:
        summary.failed_total = failed
        raise TooManyErrorsError(too_many_errors(failed, summary, settings))


def too_many_errors(failed: int, summary: Summary, settings: BatchSettings) -> str:
    """The message of a run that ends because too many rows failed.

    Only rows with ids of their own can be fixed in place: without `input.id_column`, a changed input is refused.
    """
    if settings.input.id_column is None:
        remedy = (
            "If the input or the template is at fault, change it and name a new output.path. If the cause is gone, run "
            "again with output.retry_errors=true. To accept the failures, raise errors.max_fraction."
        )
    else:
        remedy = (
            "Fix the input rows and run again with output.retry_errors=true, or raise errors.max_fraction to accept the "
            "failures. Another template needs a new output.path."
        )
    top = "; ".join(f"{count} x {error}" for error, count in summary.written.errors.most_common(3))
    return (
        f"{failed} of {summary.rows} rows failed, and errors.max_fraction={settings.errors.max_fraction} allows "
        f"{int(settings.errors.max_fraction * summary.rows)}. Most frequent: {top or 'from earlier runs'}. {remedy}"
    )


def unlike_precisions(found: Mapping[str, int], earlier: Collection[str]) -> str | None:
    """A line for a run whose workers compute in different precisions, or in others than earlier runs; else None."""
    if len({*found, *earlier}) < 2:
        return None
    before = f"; earlier runs computed in {' and '.join(sorted(earlier))}" if earlier else ""
    return (
        f"workers compute in {precision_words(found)}{before}: the text of a row depends on the worker that answers it. "
        "model.precision=exact makes them alike."
    )


def engine_report(snapshot: Snapshot, pools: Sequence[Pool[BatchSettings]], timeline: dict[str, float]) -> EngineReport:
    """What the engines did, for the summary."""
    totals = snapshot.totals
    full, last = timeline.get("last_full_step"), timeline.get("last_row")
    return EngineReport(
        precisions=snapshot.precisions,
        steps=totals.steps,
        share_of_full_steps=totals.full_steps / totals.steps if totals.steps else None,
        busy_seconds=totals.busy_seconds,
        rows_of_equal_prompts=totals.shared_rows,
        saved_tokens=SavedTokens(totals.saved_tokens, totals.saved_prompt_tokens, totals.prefix_tokens),
        workers=snapshot.per_worker,
        workers_replaced=snapshot.deaths,
        tail_seconds=max(0.0, last - full) if full and last else None,
        pools={pool.name: _pool_report(pool, snapshot.pools) for pool in pools} if len(pools) > 1 else {},
    )


def _pool_report(pool: Pool[BatchSettings], counts: dict[str, PoolCounts]) -> PoolReport:
    """The engine and the counters of a pool; zeros if none of its workers started."""
    done = counts.get(pool.name, PoolCounts())
    rate = done.workers * done.generated_tokens / done.ready_seconds if done.ready_seconds else None
    return PoolReport(
        **asdict(done),
        backend=pool.settings.backend.name,
        model=pool.settings.model.source,
        generated_tokens_per_second=rate,
    )
