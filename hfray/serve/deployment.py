"""The online service on Ray Serve: each replica one engine, the same as the batch job's, behind OpenAI's API.

`hfray.serve:app` is an application builder: `serve run hfray.serve.deployment:app conf=smollm2_openvino`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from hfray.cluster.connection import connected, is_local
from hfray.cluster.pools import check_resources, pool_of
from hfray.config.compose import load_settings
from hfray.config.serve import ServeSettings
from hfray.engines.capacity import least_capacity_of
from hfray.errors import SettingsError
from hfray.serve.metrics import MetricsBoard
from hfray.serve.middleware import read_key_digests

NAME = "hfray"
# Requests are turned away by our own admission, in OpenAI's form. Serve's limits, whose answers are plain text, lie
# far beyond it: they show only while no replica is there at all.
MAX_ONGOING = 10_000
MAX_QUEUED = 10_000
CONSTRUCTOR_TRIES = 3


class Replica:
    """A Serve replica: the service's ASGI application, and its health."""

    def __init__(self, settings: ServeSettings, threads: int, digests: Sequence[bytes], board: Any) -> None:
        from hfray.serve.replica import Service

        os.environ["HFRAY_WORKER"] = "1"
        name = serve.get_replica_context().replica_id.unique_id
        self._service = Service(settings, digests, threads, name, board)

    def __serve_build_asgi_app__(self) -> Any:
        from hfray.serve.api import build_api

        self._reports = asyncio.get_running_loop().create_task(self._service.report())
        return build_api(self._service)

    async def check_health(self) -> None:
        """Raises EngineDiedError where the engine is dead or hangs: Serve then replaces the replica."""
        self._service.check()


def app(args: Mapping[str, Any]) -> Application:
    """The Serve application. `args`: Hydra overrides as on the command line of `jobs.serve`, by key.

    Raises:
        SettingsError: they cannot be used.
    """
    return application(load_settings(overrides(args), ServeSettings))


def overrides(args: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Overrides of a mapping; values are text as on the command line, or plain YAML values."""
    found = []
    for key, value in args.items():
        if isinstance(value, Mapping) and value:
            found += overrides(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return found


def application(settings: ServeSettings) -> Application:
    """The Serve application of settings; Ray must be connected, for what of it a replica takes.

    Raises:
        SettingsError: the API keys cannot be read, or this machine will never have the GPUs.
    """
    import ray

    digests = read_key_digests(settings.serve)
    pool = pool_of(ray, settings)
    check_resources(ray, pool)
    low, high = settings.workers.bounds
    # More than an engine takes would never come: what is beyond its queue is refused, and no replica would be added.
    target = least_capacity_of(settings)
    scale = {"num_replicas": low}
    if high > low:
        bounds = {"min_replicas": low, "initial_replicas": low, "max_replicas": high}
        scale = {"autoscaling_config": {**bounds, "target_ongoing_requests": target, "upscale_delay_s": 10}}
    actor = {name: value for name, value in pool.booking.items() if value is not None}
    logs = LoggingConfig(log_level="INFO" if settings.verbose else "WARNING")
    replica = serve.deployment(serve.ingress()(Replica), name="Engine").options(
        **scale,
        ray_actor_options=actor,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.serve.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=CONSTRUCTOR_TRIES,
        logging_config=logs,
    )
    board = None
    if high > 1:
        metrics = serve.deployment(MetricsBoard, name="Metrics").options(
            ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=1, logging_config=logs
        )
        board = metrics.bind()
    return replica.bind(settings, pool.threads, digests, board)


def run_service(settings: ServeSettings) -> None:
    """Serve until interrupted; then finish what is running, and end.

    Raises:
        SettingsError: the settings cannot be used; nothing was started.
        KeyboardInterrupt: the service was stopped.
        RuntimeError: no replica could be started.
    """
    check(settings)
    # Workers get process groups of their own: Ctrl-C at a terminal is for this process, which lets them finish.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    with connected(settings):
        if not settings.verbose:
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
        where = {"host": settings.serve.host, "port": settings.serve.port}
        serve.start(proxy_location="HeadOnly", http_options=where, logging_config=LoggingConfig(log_level="WARNING"))
        try:
            serve.run(application(settings), name=NAME, route_prefix="/")
            print(f"ready: http://{settings.serve.host}:{settings.serve.port}/ (Ctrl-C to stop)", flush=True)
            while True:
                time.sleep(1)
        except SystemExit:  # what Ray makes of SIGTERM
            raise KeyboardInterrupt from None
        finally:
            _stop(settings)


def check(settings: ServeSettings) -> None:
    """What can be found wrong before anything is started; also makes the model ready. Raises SettingsError."""
    from hfray.inference.prompts import RecordPrompt

    try:
        RecordPrompt(settings.prompt)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    read_key_digests(settings.serve)
    if not is_local(settings):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.serve.host, settings.serve.port))
        except OSError as error:
            raise SettingsError(
                f"serve.port={settings.serve.port}: cannot be listened on at {settings.serve.host} "
                f"({error.strerror}). Name a free port, or stop what has it."
            ) from error
    if settings.backend.name != "fake":
        from hfray.models.source import prepare

        prepare(settings)


def write_config(settings: ServeSettings, given: Sequence[str]) -> str:
    """Write `settings.emit`: a Serve config that runs the service with the overrides `given`. Returns its path."""
    args = dict(override.split("=", 1) for override in given if not override.startswith("emit="))
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.serve.host, "port": settings.serve.port},
        "applications": [
            {"name": NAME, "route_prefix": "/", "import_path": "hfray.serve:app", "args": args},
        ],
    }
    text = "# For `serve run`, `serve deploy`, or a RayService's serveConfigV2.\n" + yaml.safe_dump(
        config, sort_keys=False
    )
    Path(settings.emit).write_text(text)
    return settings.emit


def _stop(settings: ServeSettings) -> None:
    """Take the application away; its replicas go when they are done."""
    print("stopping: finishing what is running", file=sys.stderr, flush=True)
    signal.alarm(0)  # Ray's own SIGTERM handler has set one, to end the process in three seconds
    with suppress(Exception):
        serve.delete(NAME, _blocking=False)
        deadline = time.monotonic() + settings.serve.drain_seconds + 5
        while NAME in serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.2)
