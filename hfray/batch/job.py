"""A batch job from settings to summary: check everything, run what is not done yet, report."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hfray.batch.choice import choose_engines
from hfray.batch.preflight import Job, prepare
from hfray.batch.watch import RunWatch, too_many_errors
from hfray.config.batch import BatchSettings
from hfray.errors import ExitCode, JobError, SettingsError, TooManyErrorsError
from hfray.runs.about import add_to_about
from hfray.runs.recorder import RunRecorder
from hfray.runs.report import try_report
from hfray.runs.summary import RunState, Summary

if TYPE_CHECKING:
    from hfray.cluster.pools import Pool

# Errors of Ray which only say that a function failed.
SAY_NOTHING = ("UserCodeException", "RayDataUserCodeException", "SystemException")
# Ray Data appends its advice to the first argument of every error, or adds it as an argument.
ADVICE = r"Failed to (?:(?!Failed to )[^\n])* after \d+/\d+ attempts \(total backoff .*?believe this to be transient\."
RAY_ADVICE = re.compile(rf"[:,] '{ADVICE}'|(\s|\\n)*{ADVICE}", re.DOTALL)


def run_batch(settings: BatchSettings, started: float | None = None) -> Summary:
    """Run a batch job; returns its summary, also when rows failed or the run was interrupted.

    Args:
        started: `time.time()` at the start of the command.

    Raises:
        SettingsError: the settings or the input cannot be used; nothing was started or changed.
        JobError: the job could not finish.
    """
    summary = Summary(output=settings.output.path, timeline={"command": started or time.time()})
    job = prepare(settings)
    summary.timeline["checked"] = time.time()
    summary.rows, summary.failed_total = job.table.num_rows, job.done.failed
    summary.rows_done_before = summary.rows - job.pending_rows
    with job.lease:
        if not job.pending_rows:
            summary.message = "all rows are done already; nothing to do"
            return _finish(summary, job, ran=False)
        return _run_recorded(job, summary)


def _run_recorded(job: Job, summary: Summary) -> Summary:
    """Run the job while its record is kept up to date, and write the report at the end."""
    try:
        with RunRecorder(job.output, job.run_id, summary) as record:
            try:
                _run(job, record, summary)
            except TooManyErrorsError as error:
                summary.exit_code, summary.status = ExitCode.TOO_MANY_ERRORS, RunState.TOO_MANY_ERRORS
                summary.message = str(error)
            except KeyboardInterrupt:
                summary.exit_code, summary.status = ExitCode.INTERRUPTED, RunState.INTERRUPTED
                summary.message = "interrupted; the finished rows are kept, and the same command resumes the run"
            return _finish(summary, job)
    finally:
        try_report(job.output)


def _run(job: Job, record: RunRecorder, summary: Summary) -> None:
    """Connect to Ray, prepare the model, and run the pipeline."""
    from hfray.cluster.connection import connected
    from hfray.cluster.nodes import check_shared, prepare_models
    from hfray.cluster.pools import check_resources, leave_room, pools_of

    settings = job.settings
    record.enter_stage("starting Ray")
    with connected(settings) as ray:
        summary.timeline["ray_ready"] = time.time()
        pools = pools_of(ray, settings)
        for pool in pools:
            _say(check_resources(ray, pool))
        pools = leave_room(ray, pools)
        check_shared(ray, settings, job.table)
        record.enter_stage("preparing the model")
        settings, pools, notes = choose_engines(ray, settings, pools, job.output)
        for note in notes:
            _say(note)
        job = replace(job, settings=settings)
        pools, models = prepare_models(ray, pools)
        if models:
            about = {"models": models} if len(pools) > 1 else {"model": models[""]}
            add_to_about(job.output, **about)
        summary.timeline["model_ready"] = time.time()
        record.enter_stage("starting workers")
        _watch(ray, job, pools, summary, _describe_pools(pools), record)


def _say(note: str | None) -> None:
    """Print a line immediately: what follows may wait for nodes."""
    if note:
        print(note, file=sys.stderr, flush=True)


def _describe_pools(pools: Sequence[Pool[BatchSettings]]) -> list[str]:
    """A line that describes the pools, if there are several."""
    if len(pools) == 1:
        return []
    each = []
    for pool in pools:
        low, high = pool.workers.bounds
        size = f"{low}" if low == high else f"{low} to {high}"
        each.append(f"{pool.name} ({pool.settings.backend.name}, {size} workers)")
    differ = len({repr((pool.settings.backend, pool.settings.model)) for pool in pools}) > 1
    warning = "; their engines differ, so the text of a row may depend on the pool that answers it" if differ else ""
    return [f"pools: {', '.join(each)}{warning}"]


def _watch(
    ray: Any,
    job: Job,
    pools: Sequence[Pool[BatchSettings]],
    summary: Summary,
    notes: Sequence[str],
    record: RunRecorder,
) -> None:
    """Run the pipeline, show its progress, and stop it if too many rows fail or no worker can start."""
    from hfray.batch.monitor import Monitor
    from hfray.batch.pipeline import run_pipeline
    from hfray.batch.progress import RunProgress
    from hfray.cluster.nodes import on_driver_node

    monitor = ray.remote(Monitor).options(num_cpus=0, max_concurrency=1, scheduling_strategy=on_driver_node())
    monitor = monitor.remote(job.pending_rows)
    with RunProgress(summary.rows, summary.rows_done_before) as progress:
        for note in notes:
            progress.say(note)
        watch = RunWatch(job, pools, monitor, summary, record, progress)
        try:
            run_pipeline(job, pools, monitor, watch.on_tick)
        except (KeyboardInterrupt, TooManyErrorsError, JobError, SettingsError):
            raise
        except Exception as error:
            raise JobError(explain(error)) from error
        finally:
            watch.end()
    summary.failed_total += summary.written.failed
    _check_complete(summary)


def _check_complete(summary: Summary) -> None:
    written = summary.rows_done_before + summary.written.rows
    if written < summary.rows:
        raise JobError(
            f"{summary.rows - written} of {summary.rows} rows were not answered. The input may have changed during the "
            "run; run the same command again."
        )


def _finish(summary: Summary, job: Job, ran: bool = True) -> Summary:
    """Decide the exit code and write summary.json; a run with nothing to do keeps the summary of the run before it."""
    summary.timeline["end"] = time.time()
    summary.seconds = summary.timeline["end"] - summary.timeline["command"]
    if summary.exit_code == ExitCode.OK and summary.failed_total > job.settings.errors.max_fraction * summary.rows:
        summary.exit_code, summary.status = ExitCode.TOO_MANY_ERRORS, RunState.TOO_MANY_ERRORS
        summary.message = too_many_errors(summary.failed_total, summary, job.settings)
    if ran or job.output.read_json("summary.json") is None:
        try:
            job.output.write_json("summary.json", summary.to_json())
        except OSError as error:  # the rows are written: a full disk here must not fail the run
            print(f"hfray: cannot write summary.json: {error}", file=sys.stderr, flush=True)
    return summary


def explain(error: BaseException) -> str:
    """The root cause below Ray's layers of errors, without Ray's tracebacks and advice."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while isinstance(cause, BaseException) and cause not in chain:
        chain.append(cause)
        cause = getattr(cause, "cause", None) or cause.__cause__
    for cause in reversed(chain):
        if type(cause).__name__ in SAY_NOTHING:
            continue
        text = RAY_ADVICE.sub("", str(cause))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            return type(cause).__name__
        if type(cause).__name__.startswith("RayTaskError"):  # a traceback, which begins with the root cause
            return text.split("\n\nThe above exception was the direct cause")[0].splitlines()[-1].strip()
        return lines[-1] if "Traceback" in text or "died because" in lines[0] else " ".join(lines)
    return str(chain[0]) or type(chain[0]).__name__
