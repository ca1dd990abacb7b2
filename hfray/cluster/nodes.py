"""What the nodes of a cluster need for a job: paths that all of them see, and the model, prepared once."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfray.cluster.pools import Pool
from hfray.config.batch import BatchSettings
from hfray.data.table import Table
from hfray.errors import SettingsError
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


def prepare_models(ray: Any, pools: Sequence[Pool]) -> tuple[list[Pool], dict[str, Any]]:
    """The pools with the folder of their prepared model, and what the models are (`hfray.models.source.describe`), by pool.

    On a cluster this happens on a node of the kind that a pool's workers will be on, before any of them starts: fetched
    and exported once where the nodes share `HFRAY_CACHE`, else once more by the first worker of every other node. The
    first pool that has its model ends the wait: one whose nodes don't come must not hold up the rest, and its workers
    find or prepare the model themselves.

    Raises:
        SettingsError: a model cannot be had.
        RuntimeError: no node for any within workers.start_timeout.
    """
    pools = list(pools)
    if all(pool.settings.backend.name == "fake" for pool in pools):
        return pools, {}
    here = ray.get_runtime_context().get_node_id()
    if [node["NodeID"] for node in _nodes(ray)] == [here]:
        made = {pool.name: _prepare(pool.settings) for pool in pools if pool.settings.backend.name != "fake"}
    else:
        made = _prepare_there(ray, [pool for pool in pools if pool.settings.backend.name != "fake"])
    folders = {name: folder for name, (folder, _) in made.items()}
    return [replace(p, folder=folders.get(p.name)) for p in pools], {name: about for name, (_, about) in made.items()}


def _prepare_there(ray: Any, pools: Sequence[Pool]) -> dict[str, tuple[Path, dict[str, Any]]]:
    print("preparing the model on a node of the cluster", file=sys.stderr, flush=True)
    prepare = ray.remote(_prepare)
    tasks = {prepare.options(**pool.booking, max_retries=3).remote(pool.settings): pool.name for pool in pools}
    timeout = max(pool.settings.start_timeout for pool in pools)
    first, rest = ray.wait(list(tasks), timeout=timeout)
    if not first:
        raise RuntimeError(
            f"workers.start_timeout={timeout:g}: no node has prepared the model by then. Nodes that a "
            "worker fits on may be missing (`ray status` tells), or the download is slow; raise it or mend that."
        )
    also, _ = ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
    try:
        return {tasks[task]: ray.get(task) for task in [*first, *also]}
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, SettingsError) else error from None


def _prepare(settings: BatchSettings) -> tuple[Path, dict[str, Any]]:
    from hfray.models import source as models

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
