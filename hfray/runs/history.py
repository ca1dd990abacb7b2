"""What the runs of an output folder did, one after the other: times, rates, workers."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hfray.data.output import OutputFolder
from hfray.runs.record import SAMPLE_FIELDS, STOPPED, read_runs
from hfray.runs.words import moment, occupancy

CHART_POINTS = 80
# A mark of the time line ends the stage that is named beside it.
STAGES = [
    ("checked", "looking over settings and input"),
    ("ray_ready", "starting Ray"),
    ("model_ready", "preparing the model"),
    ("worker_process", "starting workers"),
    ("engine_ready", "loading the engine"),
    ("first_row", "until the first answer"),
    ("end", "generating and writing"),
]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the folder, `seconds` and rates are up to its end, or to its last sign of life."""

    run_id: str
    state: str
    started: float
    seconds: float
    generating_seconds: float
    rows: int
    failed: int
    tokens: int
    message: str
    record: dict[str, Any]


def load_runs(output: OutputFolder, rows: Counter[str], tokens: Counter[str], failed: Counter[str]) -> list[Run]:
    """The runs of a folder, oldest first, with what lies in the folder of each by its id."""
    runs = []
    for record in read_runs(output):
        timeline, run_id, message = record["timeline"], record["run_id"], record["message"]
        end, ready = timeline.get("end") or record["updated"], timeline.get("engine_ready")
        if record["state"] == STOPPED:
            message = f"ended without a word, at or after {moment(record['updated'])}, while {record['stage']}"
        runs.append(
            Run(
                run_id=run_id,
                state=record["state"],
                started=record["started"],
                seconds=max(0.0, end - record["started"]),
                generating_seconds=max(0.0, end - ready) if ready else 0.0,
                rows=rows[run_id],
                failed=failed[run_id],
                tokens=tokens[run_id],
                message=message,
                record=record,
            )
        )
    return runs


def stage_seconds(runs: list[Run]) -> list[tuple[str, float]]:
    """(stage, seconds) over all runs; the stage that a run was killed in lasts until its last sign of life."""
    seconds = dict.fromkeys((name for _, name in STAGES), 0.0)
    for run in runs:
        timeline, then = run.record["timeline"], run.started
        last = run.started + run.seconds
        for mark, name in STAGES:
            at = timeline.get(mark)
            if at is None and mark != "end" and any(timeline.get(later) for later, _ in STAGES[_at(mark) + 1 : -1]):
                continue  # passed over: nothing to load, nothing to start
            seconds[name] += max(0.0, (last if at is None else at) - then)
            then = max(then, at or last)
            if at is None:
                break
    return [(name, spent) for name, spent in seconds.items() if spent >= 0.05]


def _at(mark: str) -> int:
    return next(i for i, (name, _) in enumerate(STAGES) if name == mark)


def tail_seconds(runs: list[Run]) -> tuple[float, float] | None:
    """(seconds, share of the generating time) at the ends of finished runs with the engines less than half full."""
    tails = busy = 0.0
    for run in runs:
        points = run.record["samples"]["points"]
        capacity, running, moment = (SAMPLE_FIELDS.index(name) for name in ("capacity", "running", "time"))
        full = [p[moment] for p in points if p[capacity] and p[running] >= p[capacity] / 2]
        if run.state == "finished" and full:
            tails += max(0.0, run.started + run.seconds - full[-1])
            busy += run.generating_seconds
    return (tails, min(1.0, tails / busy)) if busy else None


def workers(runs: list[Run]) -> list[dict[str, Any]]:
    """What each worker did, busiest first, over all runs."""
    rows = [
        {"name": name[:8], "run": run.run_id, "pool": "", "start_seconds": 0.0, **worker}
        for run in runs
        for name, worker in run.record["workers"].items()
    ]
    return sorted(rows, key=lambda worker: -worker["rows"])


def pools(runs: list[Run]) -> list[dict[str, Any]]:
    """What each pool did over all runs, where there were several: workers, rows, tokens and share of busy time."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        for name, pool in run.record.get("pools", {}).items():
            counts = {key: value for key, value in pool.items() if key not in ("busy_share", "workers_ready")}
            found.setdefault(name, Counter()).update(counts)
    shares = {
        name: counts["busy_seconds"] / counts["ready_seconds"]
        for name, counts in found.items()
        if counts["ready_seconds"]
    }
    return [{"name": name, "busy_share": shares.get(name), **counts} for name, counts in found.items()]


def course(runs: list[Run]) -> tuple[list[float], dict[str, list[float]], list[float]]:
    """(seconds, values by name, breaks): rates and occupancy of all runs, one after the other, without the pauses."""
    columns = {name: i for i, name in enumerate(SAMPLE_FIELDS)}
    sampled = [run.record["samples"]["points"] for run in runs]
    total = sum(points[-1][0] - points[0][0] for points in sampled if points)
    times: list[float] = []
    values: dict[str, list[float]] = {
        name: [] for name in ("rows", "prompt_tokens", "generated_tokens", "occupancy", "workers_ready")
    }
    breaks, offset = [], 0.0
    for points in sampled:
        if len(points) < 2:
            continue
        if times:
            breaks.append(offset)
        kept = _spaced(points, max(total / CHART_POINTS, 1.0))
        for before, now in itertools.pairwise(kept):
            seconds = max(now[0] - before[0], 1e-3)
            times.append(offset + now[0] - points[0][0])
            for name in ("rows", "prompt_tokens", "generated_tokens"):  # a death takes unfinished rows back
                values[name].append(max(0.0, now[columns[name]] - before[columns[name]]) / seconds)
            values["occupancy"].append(100 * occupancy(now[columns["running"]], now[columns["capacity"]]))
            values["workers_ready"].append(now[columns["workers_ready"]])
        offset += points[-1][0] - points[0][0]
    return times, values, breaks


def _spaced(points: list[list[float]], seconds: float) -> list[list[float]]:
    """Points at least `seconds` apart, the last one among them: rates over shorter times are noise."""
    kept = [points[0]]
    for point in points[1:-1]:
        if point[0] - kept[-1][0] >= seconds:
            kept.append(point)
    if len(kept) > 1 and points[-1][0] - kept[-1][0] < seconds:
        kept.pop()
    return [*kept, points[-1]]
