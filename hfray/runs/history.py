"""What the runs of an output folder did, in order: times, rates, workers."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import asdict, dataclass, field, fields

from hfray.data.output import OutputFolder
from hfray.runs.record import RunRecord, Sample, read_runs
from hfray.runs.snapshot import PoolCounts, WorkerCounts
from hfray.runs.summary import RunState
from hfray.runs.words import moment, occupancy

CHART_POINTS = 80
# Each mark of the timeline ends the stage beside it.
STAGES = [
    ("checked", "checking settings and input"),
    ("ray_ready", "starting Ray"),
    ("model_ready", "preparing the model"),
    ("worker_process", "starting workers"),
    ("engine_ready", "loading the engine"),
    ("first_row", "until the first answer"),
    ("end", "generating and writing"),
]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the folder. `seconds` and rates are up to its end, or to the last update of its record."""

    run_id: str
    state: str
    started: float
    seconds: float
    generating_seconds: float
    rows: int
    failed: int
    tokens: int
    message: str
    record: RunRecord


def load_runs(
    output: OutputFolder, rows: Counter[str], tokens: Counter[str], failed: Counter[str], key: str = "output.path"
) -> list[Run]:
    """The runs of a folder, oldest first. The counters say what each run id has in the finished files."""
    runs = []
    for record in read_runs(output, key):
        timeline, run_id, message = record.summary.timeline, record.run_id, record.summary.message
        end, ready = timeline.get("end") or record.updated, timeline.get("engine_ready")
        if record.state == RunState.STOPPED:
            message = f"stopped without a message, at or after {moment(record.updated)}, while {record.stage}"
        runs.append(
            Run(
                run_id=run_id,
                state=record.state,
                started=record.started,
                seconds=max(0.0, end - record.started),
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
    """(stage, seconds) over all runs. The last stage of a killed run ends at the last update of its record."""
    seconds = dict.fromkeys((name for _, name in STAGES), 0.0)
    for run in runs:
        timeline, then = run.record.summary.timeline, run.started
        last = run.started + run.seconds
        for mark, name in STAGES:
            at = timeline.get(mark)
            if at is None and mark != "end" and any(timeline.get(later) for later, _ in STAGES[_at(mark) + 1 : -1]):
                continue  # the run skipped this stage
            seconds[name] += max(0.0, (last if at is None else at) - then)
            then = max(then, at or last)
            if at is None:
                break
    return [(name, spent) for name, spent in seconds.items() if spent >= 0.05]


def _at(mark: str) -> int:
    return next(i for i, (name, _) in enumerate(STAGES) if name == mark)


def tail_seconds(runs: list[Run]) -> tuple[float, float] | None:
    """(seconds, share of the generating time) at the ends of finished runs while the engines were less than half full."""
    tails = busy = 0.0
    for run in runs:
        full = [s.time for s in run.record.samples if s.capacity and s.running >= s.capacity / 2]
        if run.state == RunState.FINISHED and full:
            tails += max(0.0, run.started + run.seconds - full[-1])
            busy += run.generating_seconds
    return (tails, min(1.0, tails / busy)) if busy else None


@dataclass(slots=True)
class WorkerRow(WorkerCounts):
    """A worker of a run, named by the start of its id."""

    name: str = ""
    run: str = ""


def workers(runs: list[Run]) -> list[WorkerRow]:
    """The workers of all runs, the worker with the most rows first."""
    rows = [
        WorkerRow(**asdict(worker), name=name[:8], run=run.run_id)
        for run in runs
        for name, worker in run.record.snapshot.per_worker.items()
    ]
    return sorted(rows, key=lambda worker: -worker.rows)


@dataclass(slots=True)
class PoolRow(PoolCounts):
    """A pool over all runs."""

    name: str = ""


def pools(runs: list[Run]) -> list[PoolRow]:
    """What each pool did over all runs; empty if the runs had one pool only."""
    found: dict[str, PoolRow] = {}
    for run in runs:
        for name, pool in run.record.snapshot.pools.items():
            row = found.setdefault(name, PoolRow(name=name))
            for column in fields(PoolCounts):
                if column.name != "busy_share":
                    setattr(row, column.name, getattr(row, column.name) + getattr(pool, column.name))
    for row in found.values():
        row.busy_share = min(1.0, row.busy_seconds / row.ready_seconds) if row.ready_seconds else None
    return list(found.values())


@dataclass(slots=True)
class Course:
    """Rates and occupancy over time: all runs in order, without the pauses between them.

    Attributes:
        times: seconds of generating; the value lists have the same length.
        breaks: the times at which one run ended and the next began.
        rows, prompt_tokens, generated_tokens: per second. Tokens are those of the engines' counters, as they grew.
        pools: (prompt, generated) tokens per second of each pool; empty if there was one pool only.
        occupancy: percent of the engines' capacity.
    """

    times: list[float] = field(default_factory=list)
    breaks: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    prompt_tokens: list[float] = field(default_factory=list)
    generated_tokens: list[float] = field(default_factory=list)
    occupancy: list[float] = field(default_factory=list)
    workers_ready: list[float] = field(default_factory=list)
    pools: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)


def course(runs: list[Run]) -> Course:
    """The rates of all runs over time."""
    sampled = [run.record.samples for run in runs if len(run.record.samples) >= 2]
    total = sum(samples[-1].time - samples[0].time for samples in sampled)
    found, offset = Course(pools={name: ([], []) for samples in sampled for name in samples[-1].pools}), 0.0
    for samples in sampled:
        if found.times:
            found.breaks.append(offset)
        for before, now in itertools.pairwise(_spaced(samples, max(total / CHART_POINTS, 1.0))):
            seconds = max(now.time - before.time, 1e-3)
            found.times.append(offset + now.time - samples[0].time)
            # A counter falls when a worker dies: its unfinished rows are done again.
            found.rows.append(max(0.0, now.rows - before.rows) / seconds)
            found.prompt_tokens.append(max(0.0, now.prompt_tokens - before.prompt_tokens) / seconds)
            found.generated_tokens.append(max(0.0, now.generated_tokens - before.generated_tokens) / seconds)
            for name, columns in found.pools.items():
                pairs = zip(before.pools.get(name, (0, 0)), now.pools.get(name, (0, 0)), columns, strict=True)
                for earlier, later, column in pairs:
                    column.append(max(0.0, later - earlier) / seconds)
            found.occupancy.append(100 * occupancy(now.running, now.capacity))
            found.workers_ready.append(now.workers_ready)
        offset += samples[-1].time - samples[0].time
    return found


def _spaced(samples: list[Sample], seconds: float) -> list[Sample]:
    """Samples at least `seconds` apart, always with the last one: rates over shorter times are noise."""
    kept = [samples[0]]
    for sample in samples[1:-1]:
        if sample.time - kept[-1].time >= seconds:
            kept.append(sample)
    if len(kept) > 1 and samples[-1].time - kept[-1].time < seconds:
        kept.pop()
    return [*kept, samples[-1]]
