"""What the workers of a run have done so far: counters, workers, pools. Plain data; the Monitor fills it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

from hfray.runs.buckets import empty_buckets


@dataclass(slots=True)
class Totals:
    """Counters that only grow. Every field is summed over workers and is exported as a metric.

    `prompt_tokens` and `generated_tokens` count the engine's own work, as it is done: a prompt when its first token is
    there, a generated token at its step; so they count rows that fail, are cancelled or run twice, too. Rows that reuse the completion of an equal
    prompt count in `shared_rows`, `saved_prompt_tokens` and `saved_tokens`. `prefix_tokens` are prompt tokens found in
    the prefix cache. `busy_seconds` is the time spent in the engine's steps.
    """

    steps: int = 0
    full_steps: int = 0
    rows: int = 0
    failed_rows: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    shared_rows: int = 0
    saved_prompt_tokens: int = 0
    saved_tokens: int = 0
    prefix_tokens: int = 0
    busy_seconds: float = 0.0

    def add(self, other: Totals) -> None:
        """Add another set of counters to this one."""
        for name in COUNTER_NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COUNTER_NAMES = tuple(counter.name for counter in fields(Totals))


@dataclass(slots=True)
class WorkerCounts:
    """What one worker did, over all its processes.

    `start_seconds` and `precision` are of its last engine: how long it took to load, and what it computes in.
    """

    pool: str = ""
    node: str = ""
    rows: int = 0
    generated_tokens: int = 0
    deaths: int = 0
    start_seconds: float = 0.0
    precision: str = ""


@dataclass(slots=True)
class PoolCounts:
    """What the workers of one pool did; `busy_share` is the busy part of the time in which they were ready."""

    workers: int = 0
    workers_ready: int = 0
    deaths: int = 0
    rows: int = 0
    failed_rows: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    busy_seconds: float = 0.0
    ready_seconds: float = 0.0
    busy_share: float | None = None


@dataclass(slots=True)
class Snapshot:
    """The workers of a run at one moment.

    Attributes:
        running, capacity: rows in the engines, and rows that the engines can run at once.
        workers, workers_ready: workers seen so far, and workers with a loaded engine now.
        timeline: marks ("engine_ready", "first_row", ...) to `time.time()`.
        max_new_tokens: the most tokens that any row so far may generate.
        running_lengths, answer_lengths: rows in the engines, and finished rows, by bucket (`hfray.runs.buckets`) of
            their generated tokens.
        cannot_start: why a worker cannot load its engine; None while no worker has that problem.
        unusable: whether the settings are the cause of `cannot_start`.
        per_worker, pools: by the worker's id, by the pool's name; `pools` is empty if there is one pool only.
    """

    totals: Totals = field(default_factory=Totals)
    running: int = 0
    capacity: int = 0
    workers: int = 0
    workers_ready: int = 0
    deaths: int = 0
    max_new_tokens: int = 0
    running_lengths: list[int] = field(default_factory=empty_buckets)
    answer_lengths: list[int] = field(default_factory=empty_buckets)
    timeline: dict[str, float] = field(default_factory=dict)
    cannot_start: str | None = None
    unusable: bool = False
    per_worker: dict[str, WorkerCounts] = field(default_factory=dict)
    pools: dict[str, PoolCounts] = field(default_factory=dict)

    @property
    def precisions(self) -> dict[str, int]:
        """What the engines compute in, to the number of workers whose last engine does."""
        told = Counter(worker.precision for worker in self.per_worker.values() if worker.precision)
        return dict(sorted(told.items()))
