"""The nodes of a cluster: check that they see the job's files, and prepare the model once for all of them."""

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

PROBED_NODES = 16  # nodes that are checked for the input files; a few are as telling as a thousand
PROBE_SECONDS = 60.0


def is_submitted() -> bool:
    """Whether this process is the driver of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_submitted_paths(settings: BatchSettings) -> None:
    """Refuse relative paths in a submitted job: its working directory is a temporary copy that Ray deletes.

    Raises:
        SettingsError: a path is relative.
    """
    if not is_submitted():
        return
    paths = settings.input.path if isinstance(settings.input.path, list) else [settings.input.path]
    named = [("input.path", path) for path in paths] + [("output.path", settings.output.path)]
    for key, path in named:
        if not is_url(path) and not Path(path).expanduser().is_absolute():
            raise SettingsError(
                f"{key}={path}: is a relative path, and a submitted job runs in a temporary copy of the working directory. "
                f"Give an absolute path that all nodes of the cluster see, as in {key}=$PWD/{path}, or a cloud URL."
            )


def on_driver_node() -> Any:
    """A scheduling strategy for the driver's own node, which lives as long as the job and sees the driver's folders."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def prepare_models(ray: Any, pools: Sequence[Pool[BatchSettings]]) -> tuple[list[Pool[BatchSettings]], dict[str, Any]]:
    """Prepare the models before any worker starts.

    On a cluster this runs on a node that a worker of the pool fits on. If the nodes share `HFRAY_CACHE`, the model is
    fetched and exported once; otherwise the first worker of every other node repeats that. The call returns as soon as
    one pool has its model: the workers of the other pools find or prepare their models themselves, so that a pool
    without nodes does not delay the rest.

    Returns:
        The pools with the folders of their models, and by pool name the description of each model
        (`hfray.models.source.describe`).

    Raises:
        SettingsError: a model cannot be fetched or exported.
        RuntimeError: no node was found for any pool within workers.start_timeout.
    """
    pools = list(pools)
    if all(pool.settings.backend.name == "fake" for pool in pools):
        return pools, {}
    here = ray.get_runtime_context().get_node_id()
    if [node["NodeID"] for node in _nodes(ray)] == [here]:
        made = {pool.name: _prepare(pool.settings) for pool in pools if pool.settings.backend.name != "fake"}
    else:
        made = _prepare_on_nodes(ray, [pool for pool in pools if pool.settings.backend.name != "fake"])
    folders = {name: folder for name, (folder, _) in made.items()}
    return [replace(p, folder=folders.get(p.name)) for p in pools], {name: about for name, (_, about) in made.items()}


def _prepare_on_nodes(ray: Any, pools: Sequence[Pool[BatchSettings]]) -> dict[str, tuple[Path, dict[str, Any]]]:
    print("preparing the model on a node of the cluster", file=sys.stderr, flush=True)
    prepare = ray.remote(_prepare)
    tasks = {prepare.options(**pool.booking, max_retries=3).remote(pool.settings): pool.name for pool in pools}
    timeout = max(pool.settings.start_timeout for pool in pools)
    first, rest = ray.wait(list(tasks), timeout=timeout)
    if not first:
        raise RuntimeError(
            f"workers.start_timeout={timeout:g}: no node prepared the model within {timeout:g} s. Either no node "
            "fits a worker (see `ray status`), or the download is slow: add nodes, or raise workers.start_timeout."
        )
    others, _ = ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
    try:
        return {tasks[task]: ray.get(task) for task in [*first, *others]}
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, SettingsError) else error from None


def _prepare(settings: BatchSettings) -> tuple[Path, dict[str, Any]]:
    from hfray.models import source as models

    return models.prepare(settings), models.describe(settings)


def check_shared(ray: Any, settings: BatchSettings, table: Table) -> None:
    """Check that the nodes see the input files. Raises SettingsError, which names a node that does not."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in _nodes(ray) if node["NodeID"] != here][:PROBED_NODES]
    local = next((piece.uri for piece in table.slices if not is_url(piece.uri)), None)
    if local is None or not others:
        return
    probe = ray.remote(_missing_on)
    probes = [
        probe.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(local)
        for node in others
    ]
    answers, _ = ray.wait(probes, num_returns=len(probes), timeout=PROBE_SECONDS)
    for answer in answers:
        try:
            missing = ray.get(answer)
        except ray.exceptions.RayError:  # the node is gone
            continue
        if missing:
            raise SettingsError(
                f"input.path={settings.input.path}: node {missing} has no file {local}. Every node of a cluster "
                "reads the input: name a folder that all nodes share, or a cloud URL."
            )


def _missing_on(path: str) -> str | None:
    """The name of this node if the file is not on it."""
    return None if Path(path).exists() else socket.gethostname()


def _nodes(ray: Any) -> list[dict[str, Any]]:
    """The live nodes that have CPUs."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
