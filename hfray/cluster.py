"""The Ray that a run uses: one of our own on this machine, or a cluster; and what of it a worker takes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from hfray.config import BatchSettings, SettingsError

QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # the core's own lines on stderr
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a FutureWarning at every start
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives ray.shutdown must not start a Ray of its own
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
    if not settings.verbose:
        _silence_ray_data()
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


def _silence_ray_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs the errors that it raises, with tracebacks


def worker_threads(ray: Any, settings: BatchSettings) -> int:
    """CPU threads of one engine: as set, else the cores of a node shared among the workers that it will hold."""
    if settings.workers.cpus != "auto":
        return settings.workers.cpus
    if settings.backend.name == "fake":
        return 1
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    largest = int(max(nodes, default=1)) or 1
    per_node = -(-settings.workers.bounds[0] // max(1, sum(cpus >= 1 for cpus in nodes)))
    return max(1, largest // per_node)


def reserved_cpus(threads: int) -> float:
    """CPUs that a worker books in Ray: less than it uses, so that the tasks that read always find one free."""
    return max(threads - 1, threads / 2)


def worker_gpus(settings: BatchSettings) -> float:
    """GPUs that a worker books."""
    if settings.workers.gpus != "auto":
        return float(settings.workers.gpus)
    return 1.0 if settings.device.uses_gpu else 0.0


def check_resources(ray: Any, settings: BatchSettings, gpus: float) -> str | None:
    """What the run has to wait for, or None.

    Raises:
        SettingsError: this machine's own Ray will never have the GPUs.
    """
    have = ray.cluster_resources().get("GPU", 0)
    if gpus <= have:
        return None
    asked = (
        f"device.index={settings.device.index}" if settings.device.map is None else f"device.map={settings.device.map}"
    )
    if is_local(settings):
        raise SettingsError(
            f"{asked}: a worker needs {gpus:g} GPU, and this machine has {have:g}. Run it on a cluster (ray.address=...), "
            "or on this CPU: conf=smollm2_openvino, conf=smollm2_cpu, conf=gpt2_cpu or conf=gpt2_openvino."
        )
    return (
        f"{asked}: a worker needs {gpus:g} GPU, and the cluster has {have:g} now. Waiting for nodes that have them, "
        f"up to workers.start_timeout={settings.workers.start_timeout:g} s."
    )
