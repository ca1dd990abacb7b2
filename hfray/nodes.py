"""What the nodes of a cluster need for a job: paths that all of them see, and the model, prepared once."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

from hfray.config import BatchSettings, SettingsError
from hfray.inputs import Table
from hfray.urls import is_url

LOOK_AT_NODES = 16  # for a file that all should see: a few tell as much as a thousand
LOOK_SECONDS = 60.0


def is_submitted() -> bool:
    """Whether this process is the driver of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_submitted_paths(settings: BatchSettings) -> None:
    """Refuse relative paths in a submitted job: they would mean its unpacked copy of the working directory, which Ray
    deletes. Raises SettingsError.
    """
    if not is_submitted():
        return
    paths = settings.input.path if isinstance(settings.input.path, list) else [settings.input.path]
    named = [("input.path", path) for path in paths] + [("output.path", settings.output.path)]
    for key, path in named:
        if not is_url(path) and not Path(path).expanduser().is_absolute():
            raise SettingsError(
                f"{key}={path}: is relative, and a submitted job runs in a temporary copy of the working directory. "
                f"Give an absolute path that the cluster's nodes see, as in {key}=$PWD/{path}, or a cloud URL."
            )


def home() -> Any:
    """Keep a task or actor on the driver's own node: it lives as long as the job, and sees the driver's folders."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def prepare_model(ray: Any, settings: BatchSettings, cpus: float, gpus: float) -> tuple[Path, dict[str, Any]]:
    """The prepared model folder, and what it is (`hfray.models.describe`).

    On a cluster this happens on a node of the kind that the workers will be on, before any of them starts: fetched
    and exported once where the nodes share `HFRAY_CACHE`, else once more by the first worker of every other node.

    Raises:
        SettingsError: the model cannot be had.
        RuntimeError: no node for it within workers.start_timeout.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in _nodes(ray)]
    if nodes == [here]:
        return _prepare(settings)
    workers = settings.workers
    task = ray.remote(_prepare).options(
        num_cpus=cpus,
        num_gpus=gpus,
        resources=workers.resources or None,
        label_selector=workers.labels or None,
        max_retries=3,
    )
    print("preparing the model on a node of the cluster", file=sys.stderr, flush=True)
    try:
        return ray.get(task.remote(settings), timeout=workers.start_timeout)
    except ray.exceptions.GetTimeoutError as error:
        raise RuntimeError(
            f"workers.start_timeout={workers.start_timeout:g}: no node has prepared the model by then. Nodes that a "
            "worker fits on may be missing (`ray status` tells), or the download is slow; raise it or mend that."
        ) from error
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, SettingsError) else error from None


def _prepare(settings: BatchSettings) -> tuple[Path, dict[str, Any]]:
    from hfray import models

    return models.prepare(settings), models.describe(settings)


def check_shared(ray: Any, settings: BatchSettings, table: Table) -> None:
    """See that the nodes that will read have the input's files. Raises SettingsError, naming a node that has not."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in _nodes(ray) if node["NodeID"] != here][:LOOK_AT_NODES]
    local = next((piece.uri for piece in table.slices if not is_url(piece.uri)), None)
    if local is None or not others:
        return
    look = ray.remote(_missing_on)
    looks = [
        look.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(local)
        for node in others
    ]
    seen, _ = ray.wait(looks, num_returns=len(looks), timeout=LOOK_SECONDS)
    for answer in seen:
        try:
            missing = ray.get(answer)
        except ray.exceptions.RayError:  # the node has gone meanwhile
            continue
        if missing:
            raise SettingsError(
                f"input.path={settings.input.path}: node {missing} has no {local}. Tables are read by every node of a "
                "cluster: name a folder that they share, or a cloud URL."
            )


def _missing_on(path: str) -> str | None:
    """This node's name, if it has no such file."""
    return None if Path(path).exists() else socket.gethostname()


def _nodes(ray: Any) -> list[dict[str, Any]]:
    """The nodes that take work now."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
