"""Pools of workers: how many workers a pool has, and what one worker books on its node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from hfray.cluster.connection import is_local
from hfray.config.batch import BatchSettings
from hfray.config.serve import ServeSettings
from hfray.config.workers import WorkerSettings
from hfray.errors import SettingsError

Settings = BatchSettings | ServeSettings
S = TypeVar("S", BatchSettings, ServeSettings)

CORES_PER_WORKER = 16  # cores of one CPU engine if workers.size and workers.cpus are auto
READER_CPUS = 1.0  # CPUs that a task that reads the table books


@dataclass(frozen=True, slots=True)
class Pool(Generic[S]):
    """Workers of one kind: the engine that they run, and what each of them books.

    Args:
        name: empty for the only pool of a job.
        key: where the settings of the pool are, for messages: `workers` or `workers[1]`.
        settings: the job's settings with this pool's backend, device, model and workers.
        threads: CPU threads of one engine.
        cpus: CPUs that a worker books in Ray.
        gpus: GPUs that a worker books in Ray.
        folder: the prepared model; None if the workers prepare the model themselves.
    """

    name: str
    key: str
    settings: S
    threads: int
    cpus: float
    gpus: float
    folder: Path | None = None

    @property
    def workers(self) -> WorkerSettings:
        """The pool's own worker settings."""
        return workers_of(self.settings)

    @property
    def booking(self) -> dict[str, Any]:
        """What a worker books, as options of a Ray task or actor."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "resources": self.workers.resources or None,
            "label_selector": self.workers.labels or None,
        }

    @property
    def least_cpus(self) -> float:
        """CPUs that the smallest number of workers books."""
        return self.cpus * self.workers.bounds[0]

    def __str__(self) -> str:
        extra = self.workers.resources | self.workers.labels
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs on one node" + (f", with {extra}" if extra else "")


def workers_of(settings: Settings) -> WorkerSettings:
    """The worker settings of one pool (`BatchSettings.pools` holds the settings of each pool of a job)."""
    if isinstance(settings.workers, list):
        raise TypeError("settings of several pools; take one of settings.pools")
    return settings.workers


def pools_of(ray: Any, settings: BatchSettings) -> list[Pool[BatchSettings]]:
    """The pools of a job; one pool if `workers` is not a list."""
    kinds = {name: sized(ray, kind) for name, kind in settings.pools.items()}
    if len(kinds) == 1:
        return [pool_of(ray, kind) for kind in kinds.values()]
    return [
        pool_of(ray, kind, name, f"workers[{number}]", [other for other in kinds.values() if other is not kind])
        for number, (name, kind) in enumerate(kinds.items())
    ]


def pool_of(ray: Any, settings: S, name: str = "", key: str = "workers", beside: Sequence[Settings] = ()) -> Pool[S]:
    """The pool of settings that `sized` returned; `beside` as in `worker_threads`."""
    threads = worker_threads(ray, settings, beside)
    return Pool(name, key, settings, threads, reserved_cpus(threads), worker_gpus(ray, settings))


def sized(ray: Any, settings: BatchSettings) -> BatchSettings:
    """The settings with a number for `workers.size=auto`: a worker per GPU, or per about CORES_PER_WORKER cores.

    Few large engines are better than many small ones: every engine holds the model once more, and more engines share
    the last rows of the table worse. Measured on two cores (SmolLM2-135M, fp32): two engines of one thread gave 309
    tok/s together, one engine of two threads gave 307. CORES_PER_WORKER is an estimate, not a measurement: beyond that,
    the threads of one engine mostly wait for memory and for each other.
    """
    workers, gpus = workers_of(settings), worker_gpus(ray, settings)
    if workers.size != "auto":
        return settings
    nodes = _nodes_for(ray, settings)
    if gpus:
        available = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in ray.nodes()}
        count = sum(int(available[node] // gpus) for node in nodes)
    elif settings.backend.name == "fake":
        count = 1
    elif workers.cpus == "auto":
        count = sum(max(1, round(cpus / CORES_PER_WORKER)) for cpus in nodes.values() if cpus >= 1)
    else:
        count = sum(int(cpus // workers.cpus) for cpus in nodes.values())
    return replace(settings, workers=replace(workers, size=max(1, count)))


def worker_threads(ray: Any, settings: Settings, beside: Sequence[Settings] = ()) -> int:
    """CPU threads of one engine: `workers.cpus`, or an equal share of the cores of the largest node.

    Args:
        beside: the settings of the job's other pools; their workers may share the nodes.
    """
    workers = workers_of(settings)
    if workers.cpus != "auto":
        return workers.cpus
    if settings.backend.name == "fake":
        return 1
    nodes = _nodes_for(ray, settings)
    largest = int(max(nodes.values(), default=1)) or 1
    workers_per_node = 0
    for kind in (settings, *beside):
        theirs = _nodes_for(ray, kind)
        if theirs.keys() & nodes.keys():
            usable = sum(cpus >= 1 for cpus in theirs.values())
            workers_per_node += -(-workers_of(kind).bounds[0] // max(1, usable))
    return max(1, largest // max(1, workers_per_node))


def _nodes_for(ray: Any, settings: Settings) -> dict[str, float]:
    """CPUs by node id of the nodes that a worker fits on; of all nodes if a worker fits on none of them yet."""
    gpus = worker_gpus(ray, settings)
    fitting = [node for node in _allowed_nodes(ray, settings) if node["Resources"].get("GPU", 0) >= gpus]
    return {node["NodeID"]: node["Resources"].get("CPU", 0) for node in fitting or _live_nodes(ray)}


def _allowed_nodes(ray: Any, settings: Settings) -> list[dict[str, Any]]:
    """The live nodes that have the labels and the resources of `workers`."""
    workers = workers_of(settings)
    return [
        node
        for node in _live_nodes(ray)
        if workers.labels.items() <= node.get("Labels", {}).items()
        and all(node["Resources"].get(name, 0) >= amount for name, amount in workers.resources.items())
    ]


def _live_nodes(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def reserved_cpus(threads: int) -> float:
    """CPUs that a worker books in Ray: fewer than its threads, so that the tasks that read the table find a free CPU."""
    return max(threads - 1, threads / 2)


def worker_gpus(ray: Any, settings: Settings) -> float:
    """GPUs that a worker books: `workers.gpus`, or as many as its engine runs on.

    A device map that accelerate makes takes all GPUs of the node with the most. While there is no such node, it is one.
    """
    gpus, needed = workers_of(settings).gpus, settings.gpus
    if gpus != "auto":
        return float(gpus)
    if needed is not None:
        return float(needed)
    return max((node["Resources"].get("GPU", 0.0) for node in _allowed_nodes(ray, settings)), default=0.0) or 1.0


def check_resources(ray: Any, pool: Pool[S]) -> str | None:
    """A line that says what the pool has to wait for, or None.

    Raises:
        SettingsError: a worker can never start in this machine's own Ray.
    """
    settings, nodes = pool.settings, [node["Resources"] for node in _live_nodes(ray)]
    if not is_local(settings):  # an autoscaler may add nodes, so a worker that fits on none is no error
        allowed = [node["Resources"] for node in _allowed_nodes(ray, settings)]
        fits = any(node.get("CPU", 0) >= pool.cpus and node.get("GPU", 0) >= pool.gpus for node in allowed)
        return None if fits else _wait_words(pool, nodes)
    cpus = max((node.get("CPU", 0) for node in nodes), default=0)
    if pool.cpus > cpus:
        raise SettingsError(
            f"{pool.key}.cpus={pool.threads}: a worker books {pool.cpus:g} CPUs, and this machine has {cpus:g}. Set "
            f"{pool.key}.cpus to {cpus:g} at most, or run the job on a cluster (ray.address=...)."
        )
    gpus = max((node.get("GPU", 0) for node in nodes), default=0)
    if pool.gpus > gpus:
        raise SettingsError(
            f"{_gpu_key(pool)}: a worker needs {pool.gpus:g} GPU, and this machine has {gpus:g}. Run the job on a cluster "
            "(ray.address=...), or on this CPU: conf=smollm2_openvino, conf=smollm2_cpu, conf=gpt2_cpu or "
            "conf=gpt2_openvino."
        )
    return None


def _wait_words(pool: Pool[S], nodes: Sequence[dict[str, float]]) -> str:
    """What a pool waits for whose worker fits on no node of the cluster now."""
    timeout = f"Waiting for such a node, up to {pool.key}.start_timeout={pool.workers.start_timeout:g} s."
    gpus = max((node.get("GPU", 0) for node in nodes), default=0)
    if pool.gpus > gpus:
        return (
            f"{_gpu_key(pool)}: a worker needs {pool.gpus:g} GPUs on one node, and no node of the cluster has more than "
            f"{gpus:g} now. {timeout}"
        )
    return f"{pool.key}: a worker needs {pool}, and the cluster has no such node now. {timeout}"


def _gpu_key(pool: Pool[S]) -> str:
    """The setting that asks for the pool's GPUs, with its value."""
    device, backend, workers = pool.settings.device, pool.settings.backend, pool.workers
    if workers.gpus != "auto":
        return f"{pool.key}.gpus={workers.gpus:g}"
    if backend.name == "vllm" and backend.parallel_gpus:
        asked = f"backend.options={backend.options}"
    else:
        asked = f"device.index={device.index}" if device.map is None else f"device.map={device.map}"
    return asked if pool.key == "workers" else f"{pool.key}.{asked}"


def leave_room(ray: Any, pools: Sequence[Pool[BatchSettings]]) -> list[Pool[BatchSettings]]:
    """The pools, booked so that this machine's own Ray keeps a CPU for the tasks that read the table.

    The workers of a single pool share the other CPUs: what a worker books decides only how many of them fit, its engine
    still runs `threads` threads. Several pools must fit as they are.

    Raises:
        SettingsError: several pools book too many CPUs together.
    """
    if not is_local(pools[0].settings):
        return list(pools)
    cpus = ray.cluster_resources().get("CPU", 0)
    free = max(cpus - READER_CPUS, 0)
    if len(pools) == 1:
        share = math.floor(100 * free / pools[0].workers.bounds[1]) / 100  # Ray counts CPUs in small fractions
        return [replace(pools[0], cpus=min(pools[0].cpus, share))]
    booked = sum(pool.least_cpus for pool in pools)
    if booked > free:
        largest = max(pools, key=lambda pool: pool.least_cpus)
        raise SettingsError(
            f"{largest.key}.cpus={largest.threads}: the pools book {booked:g} of this machine's {cpus:g} CPUs together, "
            f"and reading the table needs {READER_CPUS:g}. Give {largest.key} fewer CPUs or workers, or run the job on a "
            "cluster (ray.address=...)."
        )
    return list(pools)
