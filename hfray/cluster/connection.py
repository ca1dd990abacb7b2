"""A connection to Ray: the cluster that is named, or a Ray of our own."""

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
from hfray.errors import SettingsError

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
