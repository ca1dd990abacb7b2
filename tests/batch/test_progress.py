"""Progress: the display of a running job, and its metrics for Prometheus."""

import io
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console

from hfray.batch.metrics import COUNTERS, GAUGES
from hfray.batch.progress import RunProgress
from hfray.inference.stats import LoopStats
from hfray.runs.pace import Pace
from hfray.runs.snapshot import COUNTER_NAMES, Snapshot, Totals
from hfray.runs.timeleft import Estimate
from hfray.runs.words import coarse, duration, occupancy

NOT_METRICS = {"last_full", "max_new_tokens", "running_lengths", "answer_lengths"}
DASHBOARD = Path(__file__).parents[2] / "k8s" / "grafana-dashboard.json"


def snapshot(rows=0, failed=0, prompts=0, generated=0, ready=1, workers=1, deaths=0) -> Snapshot:
    totals = Totals(rows=rows, failed_rows=failed, prompt_tokens=prompts, generated_tokens=generated)
    return Snapshot(totals, running=8, capacity=8, workers=workers, workers_ready=ready, deaths=deaths)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rates_cover_the_window():
    pace = Pace(window=10)
    for second in range(31):
        rate, other = pace.add(second, 2 * second if second <= 20 else 40 + 5 * (second - 20), second)
    assert rate == pytest.approx(5)
    assert other == pytest.approx(1)


def test_a_counter_that_falls_gives_no_negative_rate():
    pace = Pace(window=10)
    pace.add(0, 100)
    assert pace.add(1, 60) == (0.0,)


def test_plain_lines_in_a_log(capsys):
    clock = Clock()
    with RunProgress(1000, 100, Console(file=io.StringIO()), clock) as progress:
        for second in range(0, 41):
            clock.now = float(second)
            now = snapshot(rows=5 * second, failed=1, prompts=100 * second, generated=50 * second)
            progress.update(now, Estimate(180.0 - second))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    last = lines[-1]
    assert last.startswith("300 of 1,000 rows  2 min 20 s left  5.0 rows/s  100 tokens/s in, 50 out  1 failed")
    assert last.endswith("1 worker  engines 100% full")


def test_live_lines_on_a_terminal(capsys):
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=140)
    with RunProgress(1000, 0, console, clock) as progress:
        for second in (0, 20, 40):
            clock.now = float(second)
            now = snapshot(rows=10 * second, generated=50 * second, ready=2, workers=3, deaths=1)
            progress.update(now, Estimate(100.0 - second, at_most=True))
        progress._live.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "400 of 1,000 rows" in text
    assert "10.0 rows/s" in text
    assert "2 of 3 workers" in text
    assert "1 worker replaced" in text
    assert "at most 1 min left" in text
    assert capsys.readouterr().err == ""


def test_words_before_an_engine_is_ready(capsys):
    clock = Clock()
    with RunProgress(10, 0, Console(file=io.StringIO()), clock) as progress:
        for second, workers in ((11, 0), (22, 2)):
            clock.now = float(second)
            progress.update(snapshot(ready=0, workers=workers))
    assert [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "waiting for workers",
        "2 workers starting",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (13, "13 s"),
        (42, "40 s"),
        (186, "3 min 10 s"),
        (1530, "26 min"),
        (3600, "1 h"),
        (18500, "5 h 10 min"),
    ],
)
def test_coarse_times(seconds, words):
    assert coarse(seconds) == words


def test_durations_and_occupancy():
    assert [duration(s) for s in (42, 190, 18720)] == ["42 s", "3 min 10 s", "5 h 12 min"]
    assert occupancy(3, 4) == 0.75
    assert occupancy(6, 4) == 1.0
    assert occupancy(1, 0) == 0.0


# --- metrics ---------------------------------------------------------------------------------------------------


def exported() -> set[str]:
    """The names under which Ray exports the metrics: counters end in _total."""
    return {f"ray_{name}_total" for name, _ in COUNTERS.values()} | {f"ray_{name}" for name, _ in GAUGES.values()}


def test_every_counter_of_an_engine_is_a_metric():
    assert tuple(sorted(COUNTERS)) == tuple(sorted(COUNTER_NAMES))
    assert COUNTERS.keys() | GAUGES.keys() == {field.name for field in fields(LoopStats)} - NOT_METRICS


def test_the_dashboard_asks_for_metrics_that_exist():
    text = DASHBOARD.read_text()
    assert json.loads(text)["panels"]
    asked = set(re.findall(r"ray_hfray_\w+", text))
    assert asked
    assert asked <= exported()


def test_counters_are_exported_as_increments(monkeypatch):
    import ray.util.metrics as metrics

    from hfray.batch.metrics import WorkerMetrics

    exported_values = []

    class Recorder:
        def __init__(self, name, description="", tag_keys=()):
            self.name, self.tag_keys = name, tag_keys

        def set_default_tags(self, tags):
            assert tags == {"model": "org/model", "pool": "gpu"}
            assert set(tags) == set(self.tag_keys)

        def inc(self, value):
            exported_values.append((self.name, value))

        def set(self, value):
            exported_values.append((self.name, value))

    monkeypatch.setattr(metrics, "Counter", Recorder)
    monkeypatch.setattr(metrics, "Gauge", Recorder)
    worker = WorkerMetrics("org/model", "gpu")
    worker.update(LoopStats(rows=3, running=2))
    worker.update(LoopStats(rows=3, running=1))
    worker.update(LoopStats(rows=10, running=0))
    assert [value for name, value in exported_values if name == "hfray_batch_rows"] == [3, 7]
    assert [value for name, value in exported_values if name == "hfray_batch_rows_running"] == [2, 1, 0]
