"""How a run went: `_hfray/summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum

from hfray.data.partreport import PartReport
from hfray.errors import ExitCode
from hfray.runs.fromjson import from_json
from hfray.runs.snapshot import PoolCounts, WorkerCounts


class RunState(StrEnum):
    """The status that a run writes while it runs and at its end. STOPPED: the run ended without writing a status."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    TOO_MANY_ERRORS = "too many errors"
    STOPPED = "stopped"


@dataclass(slots=True)
class SavedTokens:
    """Tokens that no engine had to process: from equal prompts (`generated`, `prompts`) and the prefix cache."""

    generated: int = 0
    prompts: int = 0
    prefixes: int = 0


@dataclass(slots=True)
class PoolReport(PoolCounts):
    """The engine and the counters of a pool; `generated_tokens_per_second` is per second of its workers' ready time."""

    backend: str = ""
    model: str = ""
    generated_tokens_per_second: float | None = None


@dataclass(slots=True)
class EngineReport:
    """What the engines of a run did.

    `precisions` are what the engines computed in, to the number of workers.
    `tail_seconds` runs from the last full step to the last row; None if no engine was ever full.
    `pools` is empty if the run had one pool only.
    """

    precisions: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    share_of_full_steps: float | None = None
    busy_seconds: float | None = None
    rows_of_equal_prompts: int = 0
    saved_tokens: SavedTokens = field(default_factory=SavedTokens)
    workers: dict[str, WorkerCounts] = field(default_factory=dict)
    workers_replaced: int = 0
    tail_seconds: float | None = None
    pools: dict[str, PoolReport] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Plain values; without `pools` if the run had one pool only."""
        plain = asdict(self)
        if not self.pools:
            del plain["pools"]
        for pool in plain.get("pools", {}).values():
            del pool["workers_ready"]  # no worker is ready any more when the summary is made
        return plain


@dataclass(slots=True)
class Summary:
    """How a run went, as in `_hfray/summary.json`.

    `engine` is None if no engine ran. `failed_total` counts the failed rows of earlier runs too.
    """

    exit_code: int = ExitCode.OK
    status: str = RunState.FINISHED
    message: str = ""
    output: str = ""
    rows: int = 0
    rows_done_before: int = 0
    written: PartReport = field(default_factory=PartReport)
    failed_total: int = 0
    seconds: float = 0.0
    engine: EngineReport | None = None
    timeline: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Plain values; rates are per second of the time in which the engine was ready."""
        plain: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        busy, written = self.generating_seconds, self.written
        plain |= {
            "exit_code": int(self.exit_code),
            "written": written.to_json(),
            "engine": self.engine.to_json() if self.engine else {},
            "timeline": dict(self.timeline),
            "rates": {
                "rows_per_second": written.rows / busy if busy else None,
                "prompt_tokens_per_second": written.prompt_tokens / busy if busy else None,
                "generated_tokens_per_second": written.generated_tokens / busy if busy else None,
            },
        }
        return plain

    @classmethod
    def from_json(cls, values: object) -> Summary:
        """A summary from what `to_json` gave, in this version or another. Raises ValueError on values of wrong types."""
        if isinstance(values, Mapping) and not values.get("engine"):
            values = {**values, "engine": None}
        return from_json(cls, values)

    @property
    def generating_seconds(self) -> float:
        """From the moment the first engine was ready to the last answered row."""
        ready, last = self.timeline.get("engine_ready"), self.timeline.get("last_row")
        return 0.0 if ready is None or last is None else max(0.0, last - ready)
