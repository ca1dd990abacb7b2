"""What the runs of a folder did, from their records."""

from collections import Counter

import pytest

from hfray.data.output import OutputFolder
from hfray.runs.history import STAGES, Run, course, load_runs, pools, stage_seconds, tail_seconds, workers
from hfray.runs.record import RunRecord, Sample
from hfray.runs.snapshot import PoolCounts
from tests.folders import write_run


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path, "aaaa", 100, ago=300, ended=False, pid=0)  # killed: no process has the id 0 here
    write_run(tmp_path, "bbbb", 100, before=40, ago=100)
    return load_runs(OutputFolder(str(tmp_path)), Counter(aaaa=40, bbbb=60), Counter(bbbb=120), Counter(aaaa=1))


def test_runs_are_in_order_and_have_their_counts(runs):
    assert [(run.run_id, run.rows, run.tokens, run.failed) for run in runs] == [
        ("aaaa", 40, 0, 1),
        ("bbbb", 60, 120, 0),
    ]
    assert [run.state for run in runs] == ["stopped", "finished"]
    assert "stopped without a message" in runs[0].message
    assert [run.seconds for run in runs] == pytest.approx([60, 60], abs=0.1)
    assert [run.generating_seconds for run in runs] == pytest.approx([48, 48], abs=0.1)


def test_stages_add_up_to_the_time_of_the_runs(runs):
    stages = dict(stage_seconds(runs))
    assert stages.keys() <= {name for _, name in STAGES}
    assert stages["starting Ray"] == pytest.approx(8, abs=0.1)
    assert sum(stages.values()) == pytest.approx(120, abs=0.5)


def test_the_tail_counts_finished_runs_only(runs):
    assert tail_seconds(runs[:1]) is None
    tail, share = tail_seconds(runs)
    assert tail >= 0
    assert 0 <= share <= 1


def test_workers_and_pools(runs):
    assert [(worker.name, worker.run, worker.rows) for worker in workers(runs)] == [
        ("w0", "aaaa", 100),
        ("w0", "bbbb", 60),
    ]
    assert pools(runs) == []
    for run in runs:
        run.record.snapshot.pools = {"gpu": PoolCounts(workers=1, rows=10, busy_seconds=5, ready_seconds=10)}
    (pool,) = pools(runs)
    assert (pool.name, pool.workers, pool.rows, pool.busy_share) == ("gpu", 2, 20, 0.5)


def test_the_course_joins_the_runs_without_the_pause(runs):
    found = course(runs)
    assert len(found.times) == len(found.rows) == len(found.generated_tokens) == len(found.occupancy)
    assert found.times == sorted(found.times)
    assert found.breaks == pytest.approx([50], abs=0.1)
    assert found.times[-1] == pytest.approx(100, abs=0.1)
    assert set(found.occupancy) == {50}
    assert course([]).times == []
    assert found.pools == {}


def test_the_course_follows_the_counters_of_each_pool():
    """A wave of rows: no row finishes for 50 s, and the tokens of both pools grow all the time."""
    samples = [
        Sample(
            time=float(second),
            rows=0 if second < 50 else 64,
            prompt_tokens=30 * second,
            generated_tokens=100 * second,
            pools={"cpu": (10 * second, 40 * second)} | ({"gpu": (20 * second, 60 * second)} if second else {}),
        )
        for second in range(51)
    ]
    found = course([Run("a", "finished", 0.0, 50.0, 50.0, 64, 0, 5000, "", RunRecord(samples=samples))])
    assert found.generated_tokens == pytest.approx([100] * len(found.times))
    assert found.prompt_tokens == pytest.approx([30] * len(found.times))
    assert found.pools["cpu"] == (pytest.approx([10] * len(found.times)), pytest.approx([40] * len(found.times)))
    assert found.pools["gpu"] == (pytest.approx([20] * len(found.times)), pytest.approx([60] * len(found.times)))
