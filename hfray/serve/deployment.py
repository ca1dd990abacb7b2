"""The Serve application: one engine per replica, the same engine as the batch job's, behind OpenAI's API.

`hfray.serve:app` is the application builder: `serve run hfray.serve:app conf=smollm2_openvino`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from hfray.cluster.connection import connect
from hfray.cluster.pools import check_resources, pool_of
from hfray.config.compose import load_settings
from hfray.config.serve import ServeSettings, is_loopback
from hfray.engines.capacity import least_capacity_of
from hfray.engines.load import WORKER
from hfray.errors import SettingsError
from hfray.serve import connections, proxy
from hfray.serve.keys import ApiKeys
from hfray.serve.metrics import MetricsBoard

NAME = "hfray"  # of the Serve application
ENGINE = "Engine"  # of the deployment
# Our own admission refuses requests, in OpenAI's form. Serve refuses in plain text, so Serve's limits are far higher:
# they only matter while no replica is up.
MAX_ONGOING = 10_000
MAX_QUEUED = 10_000
CONSTRUCTOR_TRIES = 3


class Replica:
    """A Serve replica: the ASGI application of the service, and its health check."""

    def __init__(self, settings: ServeSettings, threads: int, keys: ApiKeys, board: DeploymentHandle | None) -> None:
        from hfray.serve.replica import Service

        check_proxy(settings)  # the variable may be set on the cluster only
        _listen_on_loopback()
        os.environ[WORKER] = "1"
        name = serve.get_replica_context().replica_id.unique_id
        self._service = Service(settings, keys, threads, name, board)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from hfray.serve.api import build_api

        self._reports = asyncio.get_running_loop().create_task(self._service.report())
        return build_api(self._service)

    async def check_health(self) -> None:
        """Raises EngineDiedError if the engine is dead or hangs; Serve then replaces the replica."""
        self._service.check()

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait for the running ones; end them with an error after `seconds`."""
        await self._service.drain(seconds)


class Board(MetricsBoard):
    """The metrics board as a Serve replica."""

    def __init__(self) -> None:
        _listen_on_loopback()
        super().__init__()


def app(args: Mapping[str, object]) -> Application:
    """The Serve application. `args` are Hydra overrides by key, as on the command line of `jobs.serve`.

    `serve run` calls this before it connects to Ray, and keeps a connection that it finds.

    Raises:
        SettingsError: the settings cannot be used.
    """
    settings = load_settings(overrides(args), ServeSettings)
    set_environment(settings)
    connect(settings)
    return application(settings)


def set_environment(settings: ServeSettings) -> None:
    """Set the environment variables that Serve's processes read in a Ray that this process starts."""
    # Workers get their own process groups: Ctrl-C at a terminal must reach this process only, so that they can finish.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    os.environ.setdefault(proxy.VARIABLE, proxy.CALLBACK)
    os.environ[connections.VARIABLE] = str(settings.serve.header_timeout)


def overrides(args: Mapping[str, object], prefix: str = "") -> list[str]:
    """A mapping as Hydra overrides. Values are text as on the command line, or plain YAML values."""
    found = []
    for key, value in args.items():
        if isinstance(value, Mapping) and value:
            found += overrides(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return found


def application(settings: ServeSettings) -> Application:
    """The Serve application for some settings. Ray must be connected: the resources of a replica depend on its nodes.

    Raises:
        SettingsError: the API keys cannot be read, the machine lacks the GPUs, or the proxy needs keys.
    """
    import ray

    check_proxy(settings)
    keys = ApiKeys.read(settings.serve)
    pool = pool_of(ray, settings)
    waiting = check_resources(ray, pool)
    if waiting:
        print(waiting, file=sys.stderr, flush=True)
    logs = LoggingConfig(log_level="INFO" if settings.verbose else "WARNING")
    replica = serve.deployment(serve.ingress()(Replica), name=ENGINE).options(
        **_scale(settings),
        ray_actor_options={name: value for name, value in pool.booking.items() if value is not None},
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
    if settings.workers.bounds[1] > 1:
        metrics = serve.deployment(Board, name="Metrics").options(
            ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=1, logging_config=logs
        )
        board = metrics.bind()
    return replica.bind(settings, pool.threads, keys, board)


def check_proxy(settings: ServeSettings) -> None:
    """Raises SettingsError if the server has no keys and runs behind HAProxy.

    HAProxy connects to the replicas itself, so a replica cannot distinguish a local client from a remote one.
    """
    open_to_all = settings.serve.api_keys is None and not settings.serve.allow_public
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") != "0" and open_to_all:
        raise SettingsError(
            "RAY_SERVE_ENABLE_HA_PROXY: behind HAProxy, requests from other machines look local, and serve.api_keys is "
            "null. Set serve.api_keys=env:NAME or file:PATH, or unset the variable."
        )


def _listen_on_loopback() -> None:
    """On a local Ray, make the gRPC server of this replica listen on loopback only.

    Serve starts the server after the replica's constructor, on all addresses. Its callers use the node's address.
    """
    import ray
    from ray._common.tls_utils import add_port_to_grpc_server
    from ray.serve._private import replica

    host = ray.util.get_node_ip_address()
    if is_loopback(host):
        address = f"[{host}]:0" if ":" in host else f"{host}:0"
        cast("Any", replica).add_port_to_grpc_server = lambda server, _: add_port_to_grpc_server(server, address)


def write_config(path: str, settings: ServeSettings, given: Sequence[str]) -> None:
    """Write a Serve config file that runs the service with the overrides `given`."""
    args = dict(override.split("=", 1) for override in given if not override.startswith("emit="))
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.serve.host, "port": settings.serve.port},
        "applications": [
            {"name": NAME, "route_prefix": "/", "import_path": "hfray.serve:app", "args": args},
        ],
    }
    header = "# For `serve run`, `serve deploy`, or the serveConfigV2 of a RayService.\n"
    Path(path).write_text(header + yaml.safe_dump(config, sort_keys=False))


def _scale(settings: ServeSettings) -> dict[str, object]:
    """Serve's options for the number of replicas."""
    low, high = settings.workers.bounds
    if high == low:
        return {"num_replicas": low}
    # The target must not exceed an engine's capacity: requests beyond the queue are refused, so a higher target would
    # never be reached, and Serve would add no replica.
    target = least_capacity_of(settings)
    bounds = {"min_replicas": low, "initial_replicas": low, "max_replicas": high}
    return {"autoscaling_config": {**bounds, "target_ongoing_requests": target, "upscale_delay_s": 10}}
