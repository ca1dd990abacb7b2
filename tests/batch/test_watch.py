"""When a run is stopped, and what the summary says about its engines. No Ray."""

import time

import pytest

from hfray.batch.watch import (
    ALL_FAILED_ROWS,
    engine_report,
    stop_if_hopeless,
    too_many_errors,
    unlike_precisions,
)
from hfray.cluster.pools import Pool
from hfray.data.partreport import PartReport
from hfray.errors import JobError, SettingsError, TooManyErrorsError
from hfray.runs.snapshot import PoolCounts, Snapshot, Totals, WorkerCounts
from hfray.runs.summary import Summary
from tests.conftest import batch_settings

SETTINGS = batch_settings("conf=fake", "input.path=in.jsonl", "output.path=out", "errors.max_fraction=0.1")
POOL = Pool("gpu", "workers", SETTINGS, threads=2, cpus=1.5, gpus=0)


def stop(summary: Summary, snapshot: Snapshot) -> None:
    stop_if_hopeless(SETTINGS, [POOL], summary, snapshot)


def ready(**counts) -> Snapshot:
    return Snapshot(timeline={"engine_ready": 1.0}, **counts)


def test_a_healthy_run_goes_on():
    stop(Summary(rows=100, written=PartReport(rows=50, failed=10)), ready())
    stop(Summary(rows=100, timeline={"model_ready": time.time()}), Snapshot())


def test_too_many_failed_rows_stop_the_run():
    summary = Summary(rows=100, failed_total=5, written=PartReport(rows=50, failed=6))
    summary.written.errors["bad row"] = 6
    with pytest.raises(TooManyErrorsError, match=r"11 of 100 rows failed.*max_fraction=0\.1 allows 10.*6 x bad row"):
        stop(summary, ready())
    assert summary.failed_total == 11


@pytest.mark.parametrize(
    ("overrides", "words"),
    [([], ["name a new output.path", "If the cause is gone"]), (["input.id_column=n"], ["Fix the input rows"])],
)
def test_the_remedy_for_failed_rows_is_one_that_works(overrides, words):
    """A changed template, or a changed input without ids, would be refused with exit code 2."""
    settings = batch_settings("conf=fake", "input.path=in.jsonl", "output.path=out", *overrides)
    message = too_many_errors(11, Summary(rows=100), settings)
    for word in [*words, "output.retry_errors=true", "errors.max_fraction"]:
        assert word in message


def test_a_run_in_which_every_row_fails_stops_early():
    summary = Summary(rows=1_000_000, written=PartReport(rows=ALL_FAILED_ROWS, failed=ALL_FAILED_ROWS))
    with pytest.raises(TooManyErrorsError):
        stop(summary, ready())


def test_a_run_without_a_worker_stops():
    with pytest.raises(JobError, match="no such model"):
        stop(Summary(), ready(cannot_start="no such model"))
    with pytest.raises(SettingsError, match="no chat template"):
        stop(Summary(), ready(cannot_start="no chat template", unusable=True))
    late = Summary(rows=1, timeline={"model_ready": time.time() - 4000})
    with pytest.raises(JobError, match=r"workers\.start_timeout=3600.*1\.5 CPUs and 0 GPUs"):
        stop(late, Snapshot())


def test_the_report_of_the_engines():
    snapshot = Snapshot(
        totals=Totals(steps=10, full_steps=5, busy_seconds=3.0, shared_rows=2, saved_tokens=7), deaths=1
    )
    report = engine_report(snapshot, [POOL], {"last_full_step": 10.0, "last_row": 14.0})
    assert (report.share_of_full_steps, report.tail_seconds, report.workers_replaced) == (0.5, 4.0, 1)
    assert (report.rows_of_equal_prompts, report.saved_tokens.generated, report.pools) == (2, 7, {})
    assert engine_report(Snapshot(), [POOL], {}).share_of_full_steps is None


def test_the_report_of_several_pools():
    cpu = Pool("cpu", "workers", SETTINGS, threads=1, cpus=1, gpus=0)
    counts = PoolCounts(workers=2, rows=9, generated_tokens=100, ready_seconds=10.0, busy_share=0.5)
    report = engine_report(Snapshot(pools={"gpu": counts}), [POOL, cpu], {})
    assert (report.pools["gpu"].rows, report.pools["gpu"].backend, report.pools["gpu"].model) == (9, "fake", "fake")
    assert report.pools["gpu"].generated_tokens_per_second == 20.0
    assert (report.pools["cpu"].workers, report.pools["cpu"].generated_tokens_per_second) == (0, None)


def test_workers_that_compute_alike_need_no_line():
    assert unlike_precisions({}, []) is None
    assert unlike_precisions({"bf16": 3}, []) is None
    assert unlike_precisions({"bf16": 3}, ["bf16"]) is None


def test_workers_that_compute_in_different_precisions_are_named_in_one_line():
    workers = {name: WorkerCounts(precision=told) for name, told in [("a", "bf16"), ("b", "fp32"), ("c", "bf16")]}
    snapshot = Snapshot(per_worker=workers | {"starting": WorkerCounts()})
    assert engine_report(snapshot, [POOL], {}).precisions == {"bf16": 2, "fp32": 1}
    line = unlike_precisions(snapshot.precisions, [])
    assert line.startswith("workers compute in bf16 (2 workers) and fp32 (1 worker): the text of a row depends on")
    assert "model.precision=exact" in line
    later = unlike_precisions({"bf16": 1}, ["fp32"])
    assert later.startswith("workers compute in bf16; earlier runs computed in fp32: the text of a row depends on")
