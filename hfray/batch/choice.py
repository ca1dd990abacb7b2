"""`backend=auto` in a job: the engine is chosen once, on a node of each pool, before any worker starts.

run.json keeps the choice. A resumed run keeps the engine of the rows that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from hfray.config.batch import BatchSettings
from hfray.config.secrets import to_plain
from hfray.data.output import OutputFolder
from hfray.errors import SettingsError
from hfray.runs.about import Chosen, add_to_about, read_about
from hfray.runs.fingerprint import fingerprint

if TYPE_CHECKING:
    from hfray.cluster.pools import Pool


def with_earlier_engines(settings: BatchSettings, output: OutputFolder) -> BatchSettings:
    """The settings with the engines that earlier runs of the folder chose for `backend=auto`, if it holds rows.

    Raises:
        SettingsError: run.json is damaged.
    """
    undecided = _undecided(settings)
    if not undecided or settings.output.overwrite or not output.parts():
        return settings
    about = read_about(output)
    engines = {name: chosen.engine for name, chosen in about.chosen.items()} if about else {}
    if len(set(engines.values())) == 1:  # the pools may have other names now
        engines = dict.fromkeys(undecided, next(iter(engines.values())))
    return settings.with_engines(engines)


def choose_engines(
    ray: Any, settings: BatchSettings, pools: Sequence[Pool[BatchSettings]], output: OutputFolder
) -> tuple[BatchSettings, list[Pool[BatchSettings]], list[str]]:
    """The settings and the pools with an engine for `backend=auto`, and a line about each choice; run.json tells it.

    Raises:
        SettingsError: a model cannot be fetched.
        RuntimeError: a pool has no node within its start_timeout.
    """
    undecided = [pool for pool in pools if pool.settings.backend.name == "auto"]
    if not undecided:
        return settings, list(pools), []
    chosen = dict(zip([pool.name for pool in undecided], _on_nodes(ray, undecided), strict=True))
    engines = {name: choice.engine for name, choice in chosen.items()}
    settings = settings.with_engines(engines)
    add_to_about(
        output,
        fingerprint=fingerprint(settings),
        settings=to_plain(settings),
        chosen={name: asdict(choice) for name, choice in chosen.items()},
    )
    decided = [replace(pool, settings=_decide(pool, engines)) for pool in pools]
    notes = [f"{f'pool {name}: ' if name else ''}backend=auto: {choice.reason}" for name, choice in chosen.items()]
    return settings, decided, notes


def _undecided(settings: BatchSettings) -> list[str]:
    return [name for name, pool in settings.pools.items() if pool.backend.name == "auto"]


def _decide(pool: Pool[BatchSettings], engines: Mapping[str, str]) -> BatchSettings:
    engine = engines.get(pool.name)
    return pool.settings if engine is None else pool.settings.with_engines({"": engine})


def _on_nodes(ray: Any, pools: Sequence[Pool[BatchSettings]]) -> list[Chosen]:
    """The choices for pools, each made on a node that a worker of the pool fits on."""
    # max_calls: the libraries that were imported to look do not stay in memory.
    choose = ray.remote(max_calls=1)(_choose)
    tasks = [choose.options(**pool.booking, max_retries=3).remote(pool.settings) for pool in pools]
    timeout = max(pool.workers.start_timeout for pool in pools)
    try:
        return ray.get(tasks, timeout=timeout)
    except ray.exceptions.GetTimeoutError as error:
        raise RuntimeError(
            f"workers.start_timeout={timeout:g}: backend=auto looks at a node of each pool, and found none for a pool "
            f"within {timeout:g} s. Add nodes, name a backend, or raise workers.start_timeout."
        ) from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, SettingsError) else error from None


def _choose(settings: BatchSettings) -> Chosen:
    from hfray.engines.choice import resolve

    _, choice = resolve(settings, fixed_params=True)
    assert choice is not None  # the settings leave it open
    return Chosen(choice.engine, choice.reason)
