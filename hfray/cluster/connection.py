"""The connection to Ray: a cluster, or a local Ray that this process starts and stops."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from hfray.config.batch import BatchSettings
from hfray.config.serve import ServeSettings
from hfray.errors import SettingsError

QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's C++ core logs to stderr
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise every start prints a FutureWarning
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives ray.shutdown must not start another Ray
}
LOCAL_ONLY = {  # for a Ray that this process starts
    "RAY_worker_niceness": "0",  # Ray's default of 15 lets its helper processes slow down the engines
    "RAY_enable_metrics_collection": "0",  # nobody reads these metrics, and collecting them takes CPU time
}


def is_local(settings: BatchSettings | ServeSettings) -> bool:
    """Whether this process starts a local Ray."""
    address = settings.ray.address or os.environ.get("RAY_ADDRESS")
    return address in (None, "", "local")


@contextlib.contextmanager
def connected(settings: BatchSettings | ServeSettings) -> Iterator[Any]:
    """Ray, started or joined; the only caller of `ray.init`. A connection that exists already stays open.

    Raises:
        SettingsError: the address cannot be reached.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield ray
        return
    if is_local(settings):
        for key, value in LOCAL_ONLY.items():
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
    """Restore our handler of SIGTERM: `ray.init` installs one that ends the process with a stack dump."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """Discard what Ray's C++ core writes to stderr: it announces every log setting, even RAY_BACKEND_LOG_LEVEL."""
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
