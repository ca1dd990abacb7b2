"""The Ray that a run uses: one of our own on this machine, or a cluster; and what of it a worker takes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfray.config.batch import BatchSettings
from hfray.errors import SettingsError

CORES_PER_WORKER = 16  # of one CPU engine, where workers.size and workers.cpus are auto
QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # the core's own lines on stderr
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a FutureWarning at every start
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives ray.shutdown must not start a Ray of its own
}
OURS_ALONE = {  # of a Ray that we start ourselves
    "RAY_worker_niceness": "0",  # Ray's 15 puts workers behind its own helpers, and an engine's threads wait for the last
    "RAY_enable_metrics_collection": "0",  # nobody collects them, and all take turns on a core
}


def is_local(settings: BatchSettings) -> bool:
    """Whether the run starts a Ray of its own."""
    address = settings.ray.address or os.environ.get("RAY_ADDRESS")
    return address in (None, "", "local")


@contextlib.contextmanager
def connected(settings: BatchSettings) -> Iterator[Any]:
    """Ray, started or joined, and left as it was found. `ray.init` is called here alone."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield ray
        return
    if is_local(settings):
        for key, value in OURS_ALONE.items():
            os.environ.setdefault(key, value)
    if not settings.verbose:
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
    import ray

    level = logging.INFO if settings.verbose else logging.ERROR
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(level)
    address = settings.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        with _signals_kept(), contextlib.nullcontext() if settings.verbose else _stderr_closed():
            ray.init(
                address,
                include_dashboard=False if is_local(settings) else None,
                logging_level=level,
                log_to_driver=settings.verbose,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"ray.address={address}: cannot be reached ({str(error).splitlines()[0]}). Check the address; a cluster with "
            "token authentication needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put our handler of SIGTERM back: `ray.init` sets one in C++ that ends the process with a stack dump."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """Send what the process's C++ core writes to stderr nowhere: it announces every log setting, RAY_BACKEND_LOG_LEVEL's too."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


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
