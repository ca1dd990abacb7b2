"""Settings of workers and pools of workers."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from hfray.config.engine import STRICT, Backend, DeviceSettings, ModelSettings

POOL_GROUPS = ("backend", "device", "model")  # that a pool may have of its own, as a mapping or a choice by name


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WorkerSettings:
    """The actor pool: `size` n, [min, max] or as many workers as the nodes carry, one engine in each; the rest is what
    one worker takes.
    """

    size: int | list[int] | Literal["auto"] = "auto"
    cpus: int | Literal["auto"] = "auto"
    gpus: float | Literal["auto"] = "auto"
    resources: dict[str, float] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    step_timeout: float = Field(default=600.0, gt=0)
    start_timeout: float = Field(default=3600.0, gt=0)
    rows_per_block: int | None = Field(default=None, ge=1)

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not 1 <= low <= high or (isinstance(self.size, list) and len(self.size) != 2):
            raise ValueError(
                f"workers.size={self.size!r}: must be a count >= 1, [min, max] with 1 <= min <= max, or 'auto'."
            )
        if self.cpus != "auto" and self.cpus < 1:
            raise ValueError(f"workers.cpus={self.cpus}: must be 'auto' or at least 1.")

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most workers; `auto` is one here, until `hfray.cluster.pools.sized` has seen the nodes."""
        if self.size == "auto":
            return (1, 1)
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[-1])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PoolSettings(WorkerSettings):
    """One of several kinds of workers: what one takes, and what it runs where that is not the job's own."""

    size: int | list[int] | Literal["auto"] = 1  # auto would have each pool take the whole of the nodes they share
    name: str | None = None
    backend: Annotated[Backend, Field(discriminator="name")] | None = None
    device: DeviceSettings | None = None
    model: ModelSettings | None = None

    @property
    def workers(self) -> WorkerSettings:
        """The pool without what it runs."""
        return WorkerSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(WorkerSettings)})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RaySettings:
    """Where Ray runs: an address, "auto" for the cluster this machine belongs to, "local" for one of our own."""

    address: str | None = None


# One kind of workers, or a list of several.
Workers = Annotated[
    Annotated[WorkerSettings, Tag("workers")] | Annotated[list[PoolSettings], Tag("pools")],
    Discriminator(lambda value: "pools" if isinstance(value, list) else "workers"),
]


def _check_pools(pools: list[PoolSettings]) -> None:
    if not pools:
        raise ValueError("workers=[]: names no pool. List at least one, as in workers='[{size: 2}]', or leave it out.")
    cuts = {pool.rows_per_block for pool in pools} - {None}
    if len(cuts) > 1:
        raise ValueError(
            f"workers: rows_per_block is {' here and '.join(map(str, sorted(cuts)))} there. A block is cut before it is "
            "known who takes it: give one number, in one of the pools."
        )
    names = [pool.name for pool in pools if pool.name]
    for number, pool in enumerate(pools):
        if pool.name and names.count(pool.name) > 1:
            raise ValueError(f"workers[{number}].name={pool.name}: is the name of two pools. Give each its own.")
