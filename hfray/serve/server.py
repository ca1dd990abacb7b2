"""The service as a command: check the settings, start, wait for Ctrl-C, finish the running requests, stop."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from contextlib import suppress

from ray import serve
from ray.serve.schema import LoggingConfig

from hfray.cluster.connection import connected, is_local
from hfray.config.serve import ServeSettings
from hfray.errors import SettingsError
from hfray.serve.deployment import ENGINE, NAME, application, check_proxy, set_environment
from hfray.serve.keys import ApiKeys


def run_service(settings: ServeSettings) -> None:
    """Serve until interrupted; then finish the running requests and stop.

    Raises:
        SettingsError: the settings cannot be used; nothing was started.
        KeyboardInterrupt: the service was stopped.
        RuntimeError: no replica could be started.
    """
    check(settings)
    set_environment(settings)
    with connected(settings):
        if not settings.verbose:
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
        address = {"host": settings.serve.host, "port": settings.serve.port}
        serve.start(proxy_location="HeadOnly", http_options=address, logging_config=LoggingConfig(log_level="WARNING"))
        try:
            serve.run(application(settings), name=NAME, route_prefix="/")
            print(f"ready: http://{settings.serve.host}:{settings.serve.port}/ (Ctrl-C to stop)", flush=True)
            while True:
                time.sleep(1)
        except SystemExit:  # Ray turns SIGTERM into SystemExit
            raise KeyboardInterrupt from None
        finally:
            _stop(settings)


def check(settings: ServeSettings) -> None:
    """Check what can be checked before anything starts, and prepare the model. Raises SettingsError."""
    from hfray.inference.prompts import RecordPrompt

    try:
        RecordPrompt(settings.prompt)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    check_proxy(settings)
    ApiKeys.read(settings.serve)
    if not is_local(settings):
        return
    _check_port(settings.serve.host, settings.serve.port)
    if settings.backend.name != "fake":
        from hfray.models.source import prepare

        prepare(settings)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"serve.port={port}: cannot listen on {host} ({error.strerror}). Choose a free port, or stop the "
                "process that uses this one."
            ) from error


def _stop(settings: ServeSettings) -> None:
    """Let the replicas finish their requests, then delete the Serve application.

    The application stays routed while its replicas finish, so that they can answer new requests with 503.
    """
    print("stopping: finishing the running requests", file=sys.stderr, flush=True)
    signal.alarm(0)  # Ray's own SIGTERM handler has set an alarm that ends the process after three seconds
    seconds = settings.serve.drain_seconds
    with suppress(Exception):
        serve.get_deployment_handle(ENGINE, NAME).broadcast("drain", seconds).results(timeout_s=seconds + 10)
    with suppress(Exception):
        serve.delete(NAME, _blocking=False)
        deadline = time.monotonic() + seconds + 5
        while NAME in serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.2)
