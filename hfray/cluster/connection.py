"""The connection to Ray: a cluster, or a local Ray that this process starts and stops."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from hfray import interrupts
from hfray.cluster.private import loopback_ports, private_token, session_folder
from hfray.cluster.services import without_unused
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
    """Ray, started or joined as by `connect`; closed at the end, unless it was connected before. Raises SettingsError."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield ray
        return
    try:
        with interrupts.deferred():  # an interrupted `ray.init` leaves processes that nobody stops
            ray = connect(settings)
        yield ray
    finally:
        with interrupts.deferred():
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()


def connect(settings: BatchSettings | ServeSettings) -> Any:
    """Ray, started or joined unless this process is connected already; the only caller of `ray.init`.

    Only this user of this machine can reach a Ray that is started here.

    Raises:
        SettingsError: the address cannot be reached, or a local Ray finds no folder for its session.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return ray
    if is_local(settings):
        for key, value in LOCAL_ONLY.items():
            os.environ.setdefault(key, value)
    if not settings.verbose:
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
    import ray

    _start(ray, settings)
    return ray


def _start(ray: Any, settings: BatchSettings | ServeSettings) -> None:
    """Call `ray.init`.

    Raises:
        SettingsError: the address cannot be reached, or RAY_TMPDIR cannot be used.
        RuntimeError: Ray does not start.
    """
    level = logging.INFO if settings.verbose else logging.ERROR
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(level)
    address = settings.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": settings.verbose}
    local = contextlib.ExitStack()
    if is_local(settings):
        options |= {"include_dashboard": False, "_temp_dir": session_folder()}
        private_token(ray)
        local.enter_context(loopback_ports(ray))
        if not settings.verbose:
            local.enter_context(without_unused(ray))
    try:
        with local, _signals_kept(ray), contextlib.nullcontext() if settings.verbose else _stderr_closed():
            ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"ray.address={address}: cannot be reached ({str(error).splitlines()[0]}). Check the address; a cluster with "
            "token authentication needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from error
    except Exception as error:
        if type(error) is not Exception:  # a mistake in the program keeps its traceback
            raise
        raise RuntimeError(f"Ray does not start: {error}") from error  # a process of Ray was too slow or died


@contextlib.contextmanager
def _signals_kept(ray: Any) -> Iterator[None]:
    """Keep our signal handlers, and start Ray's processes in process groups of their own, with SIGHUP blocked.

    `ray.init` installs handlers of SIGTERM that end this process at once: two in Python, and later one in C++, which
    this function replaces again at the end. A terminal, `timeout` and job schedulers send signals to the whole process
    group of the command, a closed terminal SIGHUP to all of its processes; Ray's processes must live until the answers
    are written.
    """
    utils, in_main = ray._private.utils, threading.current_thread() is threading.main_thread()
    services = ray._private.services
    popen = services.ConsolePopen  # starts each of Ray's processes
    handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    install, blocked = utils.set_sigterm_handler, signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    utils.set_sigterm_handler = lambda handler: None
    services.ConsolePopen = functools.partial(popen, process_group=0)
    try:
        yield
    finally:
        utils.set_sigterm_handler = install
        services.ConsolePopen = popen
        for number, handler in handlers.items():
            if in_main and handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


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
