"""Settings of a batch job."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from hfray.config.engine import STRICT, EngineSettings, PromptSettings
from hfray.config.secrets import check_no_credentials
from hfray.config.workers import POOL_GROUPS, RaySettings, Workers, WorkerSettings, _check_pools


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InputSettings:
    """The table: files, folders or globs, local or in the cloud."""

    path: str | list[str]
    format: Literal["parquet", "jsonl", "csv", "text"] | None = None
    limit: int | None = Field(default=None, ge=1)
    id_column: str | None = None
    columns: list[str] | None = None

    def __post_init__(self) -> None:
        check_no_credentials("input.path", self.path)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputSettings:
    """The output folder and how it is written.

    `rows_per_file` bounds a file's rows; `flush_seconds` bounds how long finished rows wait to be written, and so
    what a crash costs beyond the rows in flight.
    """

    path: str
    resume: bool = True
    overwrite: bool = False
    retry_errors: bool = False
    rows_per_file: int = Field(default=100_000, ge=1)
    flush_seconds: float = Field(default=30.0, gt=0)

    def __post_init__(self) -> None:
        check_no_credentials("output.path", self.path)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ErrorSettings:
    """How many failed rows a run puts up with."""

    max_fraction: float = Field(default=0.05, ge=0, le=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CostSettings:
    """What a run costs: `per_worker_hour` in whatever currency, for the plan and the report."""

    per_worker_hour: float | None = Field(default=None, ge=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BatchSettings(EngineSettings):
    """A batch job; `workers` is one kind of workers, or a list of pools of them. A list of one is that one."""

    ROOT: ClassVar = "batch"  # the file in conf/ that composes them

    prompt: PromptSettings
    input: InputSettings
    output: OutputSettings
    workers: Workers = Field(default_factory=WorkerSettings)
    errors: ErrorSettings = Field(default_factory=ErrorSettings)
    cost: CostSettings = Field(default_factory=CostSettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    plan: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.workers, list):
            return
        _check_pools(self.workers)
        if len(self.workers) == 1:
            pool = self.workers[0]
            for section in POOL_GROUPS:
                object.__setattr__(self, section, getattr(pool, section) or getattr(self, section))
            object.__setattr__(self, "workers", pool.workers)

    @property
    def pools(self) -> dict[str, BatchSettings]:
        """By name the job as the workers of each pool run it, in the order of `workers`; without pools, itself."""
        if not isinstance(self.workers, list):
            return {"": self}
        found: dict[str, BatchSettings] = {}
        for number, pool in enumerate(self.workers):
            own = {name: getattr(pool, name) or getattr(self, name) for name in POOL_GROUPS}
            name = pool.name or own["backend"].name
            name = name if name not in found else f"{name}-{number}"
            found[name] = dataclasses.replace(self, workers=pool.workers, **own)
        return found

    @property
    def start_timeout(self) -> float:
        """Seconds to wait for the first worker of all."""
        return max(pool.workers.start_timeout for pool in self.pools.values())

    @property
    def rows_per_block(self) -> int | None:
        """Rows handed to a worker at a time, where it is set; one number for all, as the table has one cut."""
        return next((p.workers.rows_per_block for p in self.pools.values() if p.workers.rows_per_block), None)
