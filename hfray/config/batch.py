"""Settings of a batch job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hfray.config.backend import Backend
from hfray.config.engine import STRICT, EngineSettings, PromptSettings
from hfray.config.secrets import check_no_credentials
from hfray.config.workers import (
    POOL_GROUPS,
    RaySettings,
    Workers,
    WorkerSettings,
    check_gpus,
    check_pools,
    fold_one_pool,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InputSettings:
    """The input table: files, folders or globs, local or in the cloud."""

    path: str | list[str]
    format: Literal["parquet", "jsonl", "csv", "text"] | None = None
    limit: int | None = Field(default=None, ge=1)
    id_column: str | None = None
    columns: list[str] | None = None

    def __post_init__(self) -> None:
        check_no_credentials("input.path", self.path)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputSettings:
    """The output folder and how the job writes it.

    Attributes:
        rows_per_file: most rows in one file.
        flush_seconds: finished rows wait at most this long for their file; a crash loses them and the rows in flight.
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
    """How many failed rows a run accepts."""

    max_fraction: float = Field(default=0.05, ge=0, le=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CostSettings:
    """What a run costs: `per_worker_hour` in any currency, for the plan and the report."""

    per_worker_hour: float | None = Field(default=None, ge=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BatchSettings(EngineSettings):
    """A batch job.

    Attributes:
        workers: one kind of workers, or a list of pools. A list of one pool means that pool's workers, and its backend,
            device and model become the job's.
    """

    ROOT: ClassVar[str] = "batch"

    prompt: PromptSettings
    input: InputSettings
    output: OutputSettings
    workers: Workers = Field(default_factory=WorkerSettings)
    errors: ErrorSettings = Field(default_factory=ErrorSettings)
    cost: CostSettings = Field(default_factory=CostSettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    plan: bool = False
    verbose: bool = False

    _one_pool = model_validator(mode="before")(fold_one_pool)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.workers, list):
            check_pools(self.workers)
            _ = self.pools  # checks each pool as the job's own settings
        else:
            check_gpus(self.workers, self.gpus)

    @property
    def pools(self) -> dict[str, BatchSettings]:
        """The job as each pool runs it, by the pool's name, in the order of `workers`; without pools, the job itself."""
        if not isinstance(self.workers, list):
            return {"": self}
        found: dict[str, BatchSettings] = {}
        for number, pool in enumerate(self.workers):
            own = {name: getattr(pool, name) or getattr(self, name) for name in POOL_GROUPS}
            name = pool.name or own["backend"].name
            name = name if name not in found else f"{name}-{number}"
            found[name] = dataclasses.replace(self, workers=pool.workers, **own)
        return found

    def with_engines(self, engines: Mapping[str, str]) -> BatchSettings:
        """These settings with the engines that were chosen for `backend=auto`, by the names of the pools."""
        if not isinstance(self.workers, list):
            return dataclasses.replace(self, backend=_resolved(self.backend, engines.get("")))
        workers = [
            dataclasses.replace(pool, name=name, backend=_resolved(pool.backend or self.backend, engines.get(name)))
            for name, pool in zip(self.pools, self.workers, strict=True)
        ]
        return dataclasses.replace(self, workers=workers)

    @property
    def start_timeout(self) -> float:
        """Seconds to wait for the first worker of any pool."""
        return max(kind.start_timeout for kind in self._kinds)

    @property
    def rows_per_block(self) -> int | None:
        """Rows that a worker takes at a time, if set; one number for all pools, since they share the blocks."""
        return next((kind.rows_per_block for kind in self._kinds if kind.rows_per_block), None)

    @property
    def _kinds(self) -> Sequence[WorkerSettings]:
        return self.workers if isinstance(self.workers, list) else [self.workers]


def _resolved(backend: Backend, engine: str | None) -> Backend:
    return backend.resolved(engine) if engine is not None and backend.name == "auto" else backend
