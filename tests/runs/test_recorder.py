"""The record on disk is kept up to date during the run."""

import time
from dataclasses import replace

import pytest

from hfray.data.output import OutputFolder
from hfray.runs.record import read_runs
from hfray.runs.recorder import MAX_SAMPLES, RunRecorder
from hfray.runs.snapshot import PoolCounts, Snapshot
from hfray.runs.summary import RunState, Summary
from hfray.runs.timeleft import Estimate
from tests.folders import snapshot


@pytest.fixture
def output(tmp_path) -> OutputFolder:
    (tmp_path / "_hfray").mkdir()
    return OutputFolder(str(tmp_path))


def summary() -> Summary:
    return Summary(rows=10, timeline={"command": time.time()})


def test_the_record_is_written_while_the_run_lives(output, monkeypatch):
    monkeypatch.setattr("hfray.runs.recorder.BEAT_SECONDS", 0.05)
    with RunRecorder(output, "aaaa", summary()) as recorder:
        recorder.enter_stage("preparing the model")
        while (run := read_runs(output)[0]).stage != "preparing the model":
            time.sleep(0.05)
        assert run.state == "running"
        recorder.update(Snapshot())
        recorder.update(snapshot(7))
    (run,) = read_runs(output)
    assert (run.state, run.stage, run.snapshot.totals.rows) == ("finished", "generating", 7)


def test_the_record_has_the_time_left_and_the_tokens_of_each_pool(output):
    pools = {"cpu": PoolCounts(prompt_tokens=3, generated_tokens=4)}
    with RunRecorder(output, "aaaa", summary()) as recorder:
        recorder.update(replace(snapshot(7), pools=pools), Estimate(30.0))
        recorder._write()
        (run,) = read_runs(output)
        assert run.left == Estimate(30.0)
        assert run.samples[-1].pools == {"cpu": (3, 4)}
        recorder.update(snapshot(9))
    (run,) = read_runs(output)
    assert run.left is None


def test_the_record_stays_small(output):
    with RunRecorder(output, "aaaa", summary()) as recorder:
        for rows in range(3 * MAX_SAMPLES):
            recorder._interval = 0
            recorder.update(snapshot(rows))
        assert len(recorder._record.samples) <= MAX_SAMPLES
    (run,) = read_runs(output)
    assert run.snapshot.totals.rows == 3 * MAX_SAMPLES - 1


def test_a_run_that_raises_has_failed(output):
    with pytest.raises(RuntimeError), RunRecorder(output, "aaaa", summary()):
        raise RuntimeError("no more memory")
    (run,) = read_runs(output)
    assert (run.state, run.summary.message) == ("failed", "no more memory")


def test_the_summary_decides_the_last_state(output):
    mine = summary()
    with RunRecorder(output, "aaaa", mine):
        mine.status, mine.message = RunState.TOO_MANY_ERRORS, "all of them"
    (run,) = read_runs(output)
    assert (run.state, run.summary.message) == ("too many errors", "all of them")


def test_a_record_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with RunRecorder(OutputFolder(str(tmp_path / "file")), "aaaa", summary()):
        pass
    assert "cannot write run-aaaa.json" in capsys.readouterr().err
