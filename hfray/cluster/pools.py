"""The Ray that a run uses: one of our own on this machine, or a cluster; and what of it a worker takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfray.cluster.connection import is_local
from hfray.config.batch import BatchSettings
from hfray.errors import SettingsError

CORES_PER_WORKER = 16  # of one CPU engine, where workers.size and workers.cpus are auto


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers of one kind as they will be started: what they run, and what each takes of its node.

    `key` is where its settings stand, for messages: `workers`, or `workers[1]`. `folder` is the prepared model, None
    where the workers find or prepare it themselves.
    """

    name: str
    key: str
    settings: BatchSettings
    threads: int
    cpus: float
    gpus: float
    folder: Path | None = None

    @property
    def booking(self) -> dict[str, Any]:
        """What a worker books, as Ray's tasks and actors take it."""
        workers = self.settings.workers
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "resources": workers.resources or None,
            "label_selector": workers.labels or None,
        }

    def __str__(self) -> str:
        workers = self.settings.workers
        asked = workers.resources | workers.labels
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs on one node" + (f", with {asked}" if asked else "")


def pools_of(ray: Any, settings: BatchSettings) -> list[Pool]:
    """The job's pools, one where `workers` is no list."""
    kinds = {name: sized(ray, kind) for name, kind in settings.pools.items()}
    if len(kinds) == 1:
        return [pool_of(ray, kind) for kind in kinds.values()]
    return [
        pool_of(ray, kind, name, f"workers[{number}]", [other for other in kinds.values() if other is not kind])
        for number, (name, kind) in enumerate(kinds.items())
    ]


def pool_of(
    ray: Any, settings: BatchSettings, name: str = "", key: str = "workers", beside: Sequence[BatchSettings] = ()
) -> Pool:
    """The workers of `sized` settings that have one kind of them; `beside` as in `worker_threads`."""
    threads = worker_threads(ray, settings, beside)
    return Pool(name, key, settings, threads, reserved_cpus(threads), worker_gpus(settings))


def sized(ray: Any, settings: BatchSettings) -> BatchSettings:
    """The settings with `workers.size=auto` as a number: an engine for every GPU, or for about CORES_PER_WORKER cores.

    Measured on two cores (SmolLM2-135M, fp32): two engines of one thread gave 309 tok/s together, one of two threads
    307, so fewer it is: each engine holds the model once more, and shares out the end of the table worse. Beyond, by
    argument: past CORES_PER_WORKER the threads of one engine mostly wait for memory and for each other.
    """
    workers, gpus = settings.workers, worker_gpus(settings)
    if workers.size != "auto":
        return settings
    nodes = _nodes_for(ray, settings)
    if gpus:
        have = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in ray.nodes()}
        count = sum(int(have[node] // gpus) for node in nodes)
    elif settings.backend.name == "fake":
        count = 1
    elif workers.cpus == "auto":
        count = sum(max(1, round(cpus / CORES_PER_WORKER)) for cpus in nodes.values() if cpus >= 1)
    else:
        count = sum(int(cpus // workers.cpus) for cpus in nodes.values())
    return replace(settings, workers=replace(workers, size=max(1, count)))


def worker_threads(ray: Any, settings: BatchSettings, beside: Sequence[BatchSettings] = ()) -> int:
    """CPU threads of one engine: as set, else the cores of a node shared among the workers that it will hold.

    Args:
        beside: the job as its other pools run it; they may hold workers on the same nodes.
    """
    if settings.workers.cpus != "auto":
        return settings.workers.cpus
    if settings.backend.name == "fake":
        return 1
    nodes = _nodes_for(ray, settings)
    largest = int(max(nodes.values(), default=1)) or 1
    per_node = 0
    for kind in (settings, *beside):
        theirs = _nodes_for(ray, kind)
        if theirs.keys() & nodes.keys():
            per_node += -(-kind.workers.bounds[0] // max(1, sum(cpus >= 1 for cpus in theirs.values())))
    return max(1, largest // max(1, per_node))


def _nodes_for(ray: Any, settings: BatchSettings) -> dict[str, float]:
    """CPUs of the nodes that the workers fit on, by id; of all nodes, where none does yet."""
    workers, gpus = settings.workers, worker_gpus(settings)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    fitting = [
        node
        for node in nodes
        if workers.labels.items() <= node.get("Labels", {}).items()
        and all(node["Resources"].get(name, 0) >= much for name, much in (workers.resources | {"GPU": gpus}).items())
    ]
    return {node["NodeID"]: node["Resources"].get("CPU", 0) for node in fitting or nodes}


def reserved_cpus(threads: int) -> float:
    """CPUs that a worker books in Ray: less than it uses, so that the tasks that read always find one free."""
    return max(threads - 1, threads / 2)


def worker_gpus(settings: BatchSettings) -> float:
    """GPUs that a worker books."""
    if settings.workers.gpus != "auto":
        return float(settings.workers.gpus)
    return 1.0 if settings.device.uses_gpu else 0.0


def check_resources(ray: Any, pool: Pool) -> str | None:
    """What a pool has to wait for, or None.

    Raises:
        SettingsError: this machine's own Ray will never have it.
    """
    settings, have = pool.settings, ray.cluster_resources()
    gpus, cpus = have.get("GPU", 0), have.get("CPU", 0)
    if is_local(settings) and pool.cpus > cpus:
        raise SettingsError(
            f"{pool.key}.cpus={pool.threads}: a worker books {pool.cpus:g} CPUs, and this machine has {cpus:g}. Set "
            f"{pool.key}.cpus to {cpus:g} at most, or run it on a cluster (ray.address=...)."
        )
    if pool.gpus <= gpus:
        return None
    device = settings.device
    asked = f"device.index={device.index}" if device.map is None else f"device.map={device.map}"
    asked = asked if pool.key == "workers" else f"{pool.key}.{asked}"
    if is_local(settings):
        raise SettingsError(
            f"{asked}: a worker needs {pool.gpus:g} GPU, and this machine has {gpus:g}. Run it on a cluster "
            "(ray.address=...), or on this CPU: conf=smollm2_openvino, conf=smollm2_cpu, conf=gpt2_cpu or "
            "conf=gpt2_openvino."
        )
    return (
        f"{asked}: a worker needs {pool.gpus:g} GPU, and the cluster has {gpus:g} now. Waiting for nodes that have them, "
        f"up to workers.start_timeout={settings.workers.start_timeout:g} s."
    )


def check_room(ray: Any, pools: Sequence[Pool]) -> None:
    """See that pools side by side on this machine leave a CPU to read the table with. Raises SettingsError."""
    if len(pools) == 1 or not is_local(pools[0].settings):
        return
    cpus = ray.cluster_resources().get("CPU", 0)
    booked = sum(pool.cpus * pool.settings.workers.bounds[0] for pool in pools)
    if booked > max(cpus - 1, 0):
        largest = max(pools, key=lambda pool: pool.cpus * pool.settings.workers.bounds[0])
        raise SettingsError(
            f"{largest.key}.cpus={largest.threads}: the pools book {booked:g} of this machine's {cpus:g} CPUs together, and "
            f"the table is read with 1. Give {largest.key} fewer CPUs or workers, or run it on a cluster (ray.address=...)."
        )
