"""The rungs between the engine alone and the whole job: what each layer of Ray costs.

`engine` runs the loop and the engine in a plain process, `actor` the same in a bare Ray actor, `feed` in an actor that
Ray Data feeds, and `job` is the whole job.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hfray.completion import Prompt
from hfray.config.batch import BatchSettings
from hfray.tools.bench_contestants import Run, engine_alone

FEED_ROWS = 16  # rows of a block, as in a job with few rows
FEED_CALLS = 32  # blocks in the actor


def engine_in_an_actor(settings: BatchSettings, texts: list[str], model: dict[str, str]) -> Run:
    """`engine_alone` in a Ray actor that nothing else talks to."""
    from hfray.cluster.connection import connected

    with connected(settings) as ray:
        actor: Any = ray.remote(_Actor).options(num_cpus=1).remote()
        return Run(**ray.get(actor.run.remote(settings, texts, model)))


class _Actor:
    def run(self, settings: BatchSettings, texts: list[str], model: dict[str, str]) -> dict[str, Any]:
        return asdict(engine_alone(settings, texts, model, threads=os.cpu_count()))


def engine_fed_by_ray_data(settings: BatchSettings, texts: list[str], model: dict[str, str]) -> Run:
    """The loop and the engine in an actor of Ray Data, and nothing else of the job: no Monitor, no files, no record."""
    from hfray.cluster.connection import connected

    with connected(settings) as ray:
        from ray.data import ActorPoolStrategy, DataContext

        DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"text": text} for text in texts], override_num_blocks=-(-len(texts) // FEED_ROWS))
        answered = rows.map_batches(
            _FedActor,
            fn_constructor_args=(settings, model),
            batch_size=None,
            num_cpus=1,
            compute=ActorPoolStrategy(
                size=1, max_concurrent_calls_per_actor=FEED_CALLS, max_tasks_in_flight_per_actor=FEED_CALLS + 1
            ),
        ).take_all()
    return Run(
        tokens=sum(row["tokens"] for row in answered),
        precision=answered[0]["precision"],
        prompt_tokens=sum(row["prompt_tokens"] for row in answered),
        seconds=max(row["ended"] for row in answered) - answered[0]["ready"],
        full_steps=max((row["ended"], row["full_steps"]) for row in answered)[1],
    )


class _FedActor:
    def __init__(self, settings: BatchSettings, model: dict[str, str]) -> None:
        from hfray.engines.load import load_engine
        from hfray.inference.loop import EngineLoop

        folder = model.get("ir", model.get("hf"))  # the fake backend has no model
        engine = load_engine(settings, folder=Path(folder) if folder else None, threads=os.cpu_count())
        self._loop, self._params, self._ready = EngineLoop(engine), settings.params, time.time()

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        from hfray.inference.handle import gather

        completions = await gather([self._loop.submit(Prompt(str(text)), self._params) for text in batch["text"]])
        stats, rows = self._loop.stats, len(completions)
        return {
            "tokens": [completion.num_generated_tokens for completion in completions],
            "prompt_tokens": [completion.num_prompt_tokens for completion in completions],
            "precision": [self._loop.engine.precision] * rows,
            "ready": [self._ready] * rows,
            "ended": [time.time()] * rows,
            "full_steps": [stats.full_steps / max(1, stats.steps)] * rows,
        }
