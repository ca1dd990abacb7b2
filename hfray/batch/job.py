"""A batch job from settings to summary: look everything over, go on from what is done, run, report."""

from __future__ import annotations

import time
from typing import Any

from hfray.batch.preflight import any_pending, check, check_output, done_rows, output_folder, take_over
from hfray.batch.watch import RunWatch, too_many_errors
from hfray.config.batch import BatchSettings
from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder
from hfray.data.table import Table
from hfray.errors import ExitCode, JobError, TooManyErrorsError
from hfray.runs.recorder import RunRecorder
from hfray.runs.report import try_report
from hfray.runs.summary import RunState, Summary


def run_batch(settings: BatchSettings, started: float | None = None) -> Summary:
    """Run a batch job; returns its summary, also when rows failed or it was interrupted.

    Args:
        started: `time.time()` of the command, for the time line.

    Raises:
        SettingsError: settings or input cannot be used; nothing was started, nothing written.
        JobError: the job could not go on.
    """
    summary = Summary(output=settings.output.path, timeline={"command": started or time.time()})
    table = check(settings)
    output = output_folder(settings)
    check_output(settings, output, table)
    summary.timeline["checked"] = time.time()
    run_id = take_over(settings, output)
    done = done_rows(settings, output)
    summary.rows, summary.rows_done_before, summary.failed_total = table.num_rows, done.count, done.failed
    if done.count >= table.num_rows and not any_pending(table, done):
        summary.message = "all rows are done already; nothing to do"
        return finish(summary, settings, output)
    try:
        with RunRecorder(output, run_id, summary) as record:
            try:
                _run(settings, table, output, done, record, summary)
            except TooManyErrorsError as error:
                summary.exit_code, summary.status = ExitCode.TOO_MANY_ERRORS, RunState.TOO_MANY_ERRORS
                summary.message = str(error)
            except KeyboardInterrupt:
                summary.exit_code, summary.status = ExitCode.INTERRUPTED, RunState.INTERRUPTED
                summary.message = "interrupted; the finished rows are kept, and the same command resumes the run"
            return finish(summary, settings, output)
    finally:
        try_report(output)


# --- the run ---------------------------------------------------------------------------------------------------


def _run(
    settings: BatchSettings, table: Table, output: OutputFolder, done: DoneRows, record: RunRecorder, summary: Summary
) -> None:
    from hfray.cluster.connection import connected
    from hfray.cluster.nodes import check_shared, prepare_models
    from hfray.cluster.pools import check_resources, check_room, pools_of

    record.enter_stage("starting Ray")
    with connected(settings) as ray:
        summary.timeline["ray_ready"] = time.time()
        pools = pools_of(ray, settings)
        notes = [note for note in (check_resources(ray, pool) for pool in pools) if note]
        check_room(ray, pools)
        check_shared(ray, settings, table)
        record.enter_stage("preparing the model")
        pools, models = prepare_models(ray, pools)
        if models:
            about = {"models": models} if len(pools) > 1 else {"model": models[""]}
            output.write_json("run.json", (output.read_json("run.json") or {}) | about)
        summary.timeline["model_ready"] = time.time()
        from hfray.batch.pipeline import Job

        job = Job(settings, table, done, output, record.run_id, pools)
        record.enter_stage("starting workers")
        _watch(ray, job, summary, [*_pool_words(pools), *notes], record)


def _pool_words(pools: list[Any]) -> list[str]:
    """What several pools are, in a line at the start of a run."""
    if len(pools) == 1:
        return []
    sizes = [pool.settings.workers.bounds for pool in pools]
    each = [
        f"{pool.name} ({pool.settings.backend.name}, {low}{'' if low == high else f' to {high}'} workers)"
        for pool, (low, high) in zip(pools, sizes, strict=True)
    ]
    unlike = len({repr((pool.settings.backend, pool.settings.model)) for pool in pools}) > 1
    warning = "; they run unlike engines, so a row's text may depend on which of them takes it" if unlike else ""
    return [f"pools: {', '.join(each)}{warning}"]


def _watch(ray: Any, job: Any, summary: Summary, notes: list[str], record: RunRecorder) -> None:
    """Run the pipeline, show how far it is, and stop it when it is failing or cannot start."""
    from hfray.batch.monitor import Monitor
    from hfray.batch.pipeline import run_pipeline
    from hfray.batch.progress import RunProgress
    from hfray.cluster.nodes import home

    monitor = ray.remote(Monitor).options(num_cpus=0, max_concurrency=1, scheduling_strategy=home())
    monitor = monitor.remote(summary.rows - summary.rows_done_before)
    with RunProgress(summary.rows, summary.rows_done_before) as progress:
        for note in notes:
            progress.say(note)

        watch = RunWatch(job.settings, job.pools, monitor, summary, record, progress)
        try:
            run_pipeline(job, monitor, watch.on_tick)
        except (KeyboardInterrupt, TooManyErrorsError, JobError):
            raise
        except Exception as error:
            raise JobError(explain(error)) from error
        finally:
            watch.end()
    summary.failed_total += summary.written.failed
    _check_complete(summary, job)


def _check_complete(summary: Summary, job: Any) -> None:
    written = summary.rows_done_before + summary.written.rows
    if written < summary.rows:
        raise JobError(
            f"{summary.rows - written} of {summary.rows} rows were not answered. The input may have changed while it was "
            "read; run the same command again."
        )


# --- after -----------------------------------------------------------------------------------------------------


def finish(summary: Summary, settings: BatchSettings, output: OutputFolder) -> Summary:
    """Settle the exit code and write summary.json."""
    summary.timeline["end"] = time.time()
    summary.seconds = summary.timeline["end"] - summary.timeline["command"]
    if summary.exit_code == ExitCode.OK and summary.failed_total > settings.errors.max_fraction * summary.rows:
        summary.exit_code, summary.status = ExitCode.TOO_MANY_ERRORS, RunState.TOO_MANY_ERRORS
        summary.message = too_many_errors(summary.failed_total, summary, settings)
    output.write_json("summary.json", summary.to_json())
    return summary


def explain(error: BaseException) -> str:
    """What went wrong at the bottom of Ray's layers of errors, without their tracebacks."""
    chain: list[BaseException] = []
    while isinstance(error, BaseException) and error not in chain:
        chain.append(error)
        error = getattr(error, "cause", None) or error.__cause__
    for cause in reversed(chain):
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        if not lines or type(cause).__module__.startswith("ray.data"):
            continue  # Ray Data's wrappers say only that a function failed
        return lines[-1] if "Traceback" in str(cause) or "died because" in lines[0] else " ".join(lines)
    return str(chain[0]) or type(chain[0]).__name__
