"""Settings of workers and pools of workers."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from hfray.config.backend import Backend, ModelSettings
from hfray.config.engine import STRICT, DeviceSettings

POOL_GROUPS = ("backend", "device", "model")  # a pool may have its own, as a mapping or as the name of a choice


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WorkerSettings:
    """The workers, each with one engine.

    Attributes:
        size: how many; [min, max] grows and shrinks with the work; "auto" depends on the nodes.
        cpus, gpus, resources, labels: what one worker takes.
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
        """Fewest and most workers; `auto` counts as one until `hfray.cluster.pools.sized` has seen the nodes."""
        if self.size == "auto":
            return (1, 1)
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[-1])

    @property
    def gpu_share(self) -> float:
        """The part of a GPU's memory that one worker may take; below 1 if several workers share a GPU."""
        return self.gpus if self.gpus != "auto" and 0 < self.gpus < 1 else 1.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PoolSettings(WorkerSettings):
    """One of several kinds of workers: what a worker takes, and what it runs if that differs from the job."""

    size: int | list[int] | Literal["auto"] = 1  # with auto each pool would take all of the nodes that the pools share
    name: str | None = None
    backend: Annotated[Backend, Field(discriminator="name")] | None = None
    device: DeviceSettings | None = None
    model: ModelSettings | None = None

    @property
    def workers(self) -> WorkerSettings:
        """The pool's workers, without what they run."""
        return WorkerSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(WorkerSettings)})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RaySettings:
    """Where Ray runs: an address, "auto" for the cluster of this machine, "local" for a Ray that the job starts."""

    address: str | None = None


# One kind of workers, or a list of several.
Workers = Annotated[
    Annotated[WorkerSettings, Tag("workers")] | Annotated[list[PoolSettings], Tag("pools")],
    Discriminator(lambda value: "pools" if isinstance(value, list) else "workers"),
]


def keyword_values(given: object) -> dict[str, object]:
    """The values that pydantic passes to a `before` validator of a dataclass, as a new dictionary."""
    values = given.kwargs if isinstance(given, ArgsKwargs) else given
    return {**values} if isinstance(values, dict) else {}


def fold_one_pool(given: object) -> object:
    """Values of a job in which a list of one pool is replaced by the pool's own workers, backend, device and model."""
    values = keyword_values(given)
    pools = values.get("workers")
    if not isinstance(pools, list) or len(pools) != 1:
        return given
    pool = pools[0]
    if isinstance(pool, PoolSettings):
        own, values["workers"] = vars(pool), pool.workers
    elif isinstance(pool, dict):
        own = pool
        values["workers"] = {"size": PoolSettings.size} | {
            key: value for key, value in pool.items() if key not in (*POOL_GROUPS, "name")
        }
    else:
        return given
    values |= {group: own[group] for group in POOL_GROUPS if own.get(group) is not None}
    return ArgsKwargs((), values) if isinstance(given, ArgsKwargs) else values


def check_gpus(workers: WorkerSettings, needed: int | None) -> None:
    """Check that a worker books the GPUs that its engine runs on. Raises ValueError, naming key, value and remedy."""
    if workers.gpus != "auto" and needed is not None and needed > max(1.0, workers.gpus):
        raise ValueError(
            f"workers.gpus={workers.gpus:g}: the engine runs on {needed} GPUs, as backend.options or device.map say. Set "
            f"workers.gpus={needed}, or leave it out."
        )


def check_pools(pools: list[PoolSettings]) -> None:
    """Check what pools must share. Raises ValueError, naming key, value and remedy."""
    if not pools:
        raise ValueError(
            "workers=[]: the list names no pool. List at least one, as in workers='[{size: 2}]', or leave it out."
        )
    cuts = sorted({pool.rows_per_block for pool in pools if pool.rows_per_block})
    if len(cuts) > 1:
        raise ValueError(
            f"workers: pools have different rows_per_block ({', '.join(map(str, cuts))}), but they share the blocks. "
            "Give one number, in one of the pools."
        )
    names = [pool.name for pool in pools if pool.name]
    for number, pool in enumerate(pools):
        if pool.name and names.count(pool.name) > 1:
            raise ValueError(f"workers[{number}].name={pool.name}: two pools have this name. Give each its own.")
