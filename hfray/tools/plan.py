"""Plan a run: measure the prompts, generate a few answers, and estimate the time and the cost of all rows.

Writes nothing except the model cache. The output folder is read, and never created.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from hfray.completion import Prompt
from hfray.config.batch import BatchSettings
from hfray.data import readers
from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder
from hfray.data.records import python_rows
from hfray.data.table import Table
from hfray.engines.load import WORKER
from hfray.errors import EngineDiedError, RequestError, SettingsError
from hfray.params import GenerationParams as Params
from hfray.runs.contents import Lengths

if TYPE_CHECKING:
    from hfray.inference.worker import Worker

SAMPLE_ROWS = 1000  # prompts to render and to count the tokens of
BLOCK_ROWS, BLOCKS = 1024, 48  # rows of a block, and the number of blocks to sample from, spread over the slices
MIN_TRIED, MAX_TRIED = 32, 128  # the engine runs twice its capacity of rows, within these limits
TRY_SECONDS = 90.0  # the trial ends after this time, and only finished rows count
WORKERS = (1, 4, 16)
EXAMPLES = 3


@dataclass(slots=True)
class Trial:
    """The measurements of one worker on the sample. Lengths are in tokens."""

    start_seconds: float = 0.0
    precision: str = ""
    engine: str | None = None  # which engine backend=auto became, and why
    threads: int | None = None
    context_length: int | None = None
    prompts: Lengths = field(default_factory=Lengths)
    too_long: int = 0
    errors: Counter = field(default_factory=Counter)
    sampled: int = 0
    tried: int = 0
    finished: int = 0
    seconds: float = 0.0
    generated_tokens: float = 0.0  # in finished rows
    tokens_per_second: float = 0.0
    examples: list[tuple[str, str, str]] = field(default_factory=list)  # prompt, answer, finish reason

    @property
    def tokens_per_row(self) -> float:
        """The mean length of the finished answers."""
        return self.generated_tokens / self.finished if self.finished else 0.0

    @property
    def rows_per_second(self) -> float:
        """How many rows a fully loaded worker finishes per second."""
        if not self.seconds:
            return 0.0
        if self.tokens_per_row and self.tokens_per_second:
            return self.tokens_per_second / self.tokens_per_row
        return self.finished / self.seconds


@dataclass(slots=True)
class Plan:
    """The size of a run, and its estimates."""

    rows: int
    done: int
    trial: Trial
    price: float | None = None

    @property
    def pending(self) -> int:
        """Rows that are not done yet."""
        return max(0, self.rows - self.done)

    def estimate(self, workers: int) -> float | None:
        """Seconds for the pending rows with `workers` workers like the tried one; None if no row was finished."""
        rate = self.trial.rows_per_second
        return self.trial.start_seconds + self.pending / (workers * rate) if rate else None

    def cost(self, workers: int) -> float | None:
        """The price of the estimate; None if cost.per_worker_hour is not set."""
        seconds = self.estimate(workers)
        return None if self.price is None or seconds is None else self.price * workers * seconds / 3600


def make_plan(settings: BatchSettings) -> Plan:
    """Check the settings and the input as a run does, try a sample on one worker, and estimate the run.

    Raises:
        SettingsError: a run with these settings could not start.
        EngineDiedError: the engine fails on the sample.
    """
    from hfray.batch.preflight import count_pending, inspect

    settings, table, output = inspect(settings)
    done = _done(settings, output)
    pending = count_pending(table, done)
    trial = _try_somewhere(settings, sample(table, done)) if pending else Trial()
    return Plan(table.num_rows, table.num_rows - pending, trial, settings.cost.per_worker_hour)


def _done(settings: BatchSettings, output: OutputFolder) -> DoneRows:
    if settings.output.overwrite:
        return DoneRows()
    return DoneRows.read(output, settings.input.id_column is None, skip_failed=settings.output.retry_errors)


def sample(table: Table, done: DoneRows) -> pa.Table:
    """A random sample of at most SAMPLE_ROWS pending rows, from blocks spread over the table.

    A block without pending rows does not count. If no slice of the spread has pending rows, the other slices are read.
    """
    generator = np.random.default_rng(0)
    spread = np.unique(np.linspace(0, len(table.slices) - 1, BLOCKS).astype(int)).tolist()
    others = sorted(set(range(len(table.slices))) - set(spread))
    each, found = -(-BLOCKS // len(spread)), list[pa.Table]()
    for number, index in enumerate([*spread, *others]):
        if number >= len(spread) and found:
            break
        left = (done.drop_from(block) for block in readers.read(table, table.slices[index], BLOCK_ROWS))
        found += itertools.islice((block for block in left if block.num_rows), each)
    rows = pa.concat_tables(found)
    picks = generator.choice(rows.num_rows, size=min(SAMPLE_ROWS, rows.num_rows), replace=False)
    return rows.take(pa.array(picks))


def _try_somewhere(settings: BatchSettings, rows: pa.Table) -> Trial:
    """Try the rows in this process, or on a cluster in a task on a node that a worker fits on."""
    from hfray.cluster.connection import connected, is_local
    from hfray.cluster.pools import check_resources, pools_of

    settings, *others = settings.pools.values()
    workers = settings.workers
    assert not isinstance(workers, list)  # the settings of one pool have one kind of worker
    if others:
        print("Several pools are set. The plan measures a worker of the first pool.", file=sys.stderr, flush=True)
    if is_local(settings):
        threads = None if workers.cpus == "auto" else workers.cpus
        return try_rows(settings, rows, threads)
    with connected(settings) as ray:
        (pool,) = pools_of(ray, settings)
        waiting = check_resources(ray, pool)
        if waiting:
            print(waiting, file=sys.stderr, flush=True)
        task, timeout = ray.remote(_try_as_worker).options(**pool.booking, max_retries=0), workers.start_timeout
        try:
            return ray.get(task.remote(settings, rows, pool.threads), timeout=timeout)
        except ray.exceptions.GetTimeoutError as error:
            raise RuntimeError(
                f"workers.start_timeout={timeout:g}: no worker started within this time. Raise it."
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, SettingsError | EngineDiedError) else error from None


def _try_as_worker(settings: BatchSettings, rows: pa.Table, threads: int | None) -> Trial:
    """`try_rows` in a Ray task, which sees only the GPUs that it booked."""
    os.environ[WORKER] = "1"
    try:
        return try_rows(settings, rows, threads)
    finally:
        del os.environ[WORKER]  # another task may use this process next


def try_rows(settings: BatchSettings, rows: pa.Table, threads: int | None) -> Trial:
    """Load the engine, count the tokens of all rows, and run some of the rows. Needs no Ray."""
    from hfray.inference.worker import Worker

    trial, started = Trial(threads=threads, sampled=rows.num_rows), time.monotonic()
    worker = Worker(settings, threads=threads)
    try:
        trial.start_seconds, trial.precision = time.monotonic() - started, worker.loop.engine.precision
        trial.engine = worker.choice
        prompts = _render(settings, worker, rows, trial)
        capacity = worker.loop.engine.capacity
        _run(worker, prompts[: min(MAX_TRIED, max(MIN_TRIED, 2 * capacity))], trial)
    finally:
        worker.loop.close()
    return trial


def _render(settings: BatchSettings, worker: Worker, rows: pa.Table, trial: Trial) -> list[tuple[Prompt, Params]]:
    """The prompts that the engine accepts, with their parameters. Counts the tokens of every prompt, and the errors of the other rows."""
    engine, prompts = worker.loop.engine, []
    trial.context_length = engine.context_length
    for row in python_rows(rows):
        try:
            if row["error"] is not None:
                raise RequestError(row["error"])
            prompt, params = worker.prompts.render(row), worker.params_of(row)
        except RequestError as fault:
            trial.errors[str(fault)] += 1
            continue
        tokens = len(engine.tokenizer.encode(prompt.text, add_special_tokens=not prompt.special_tokens_in_text))
        trial.prompts.add(np.array([tokens]))
        try:
            settings.params.max_tokens_for(tokens, engine.context_length)
        except RequestError:
            trial.too_long += 1
            continue
        prompts.append((prompt, params))
    return prompts


def _run(worker: Worker, prompts: list[tuple[Prompt, Params]], trial: Trial) -> None:
    """Run prompts and measure the engine's pace while it is full.

    Once no prompt waits, the engine drains, and its pace no longer predicts the pace of a long run.
    """
    started, finished = time.monotonic(), []
    handles = [worker.loop.submit(prompt, params) for prompt, params in prompts]
    full: tuple[float, int] | None = None  # seconds and generated tokens at the end of the full time
    try:
        for handle in as_completed(handles, timeout=TRY_SECONDS):
            finished.append(handle)
            if len(finished) == len(prompts) - worker.loop.engine.capacity:
                full = time.monotonic() - started, sum(handle.num_tokens for handle in handles)
    except TimeoutError:  # only what has come by now counts
        full = full or (time.monotonic() - started, sum(handle.num_tokens for handle in handles))
    trial.tried, trial.seconds = len(prompts), time.monotonic() - started
    tokens = 0
    for (prompt, _), handle in [pair for pair in zip(prompts, handles, strict=True) if pair[1] in finished]:
        completion = handle.result()
        if completion.error is not None:
            trial.errors[completion.error] += 1
            continue
        trial.finished += 1
        tokens += completion.num_generated_tokens
        if len(trial.examples) < EXAMPLES:
            trial.examples.append((prompt.text, completion.text or "", completion.finish_reason))
    trial.generated_tokens = tokens
    seconds, counted = full if full and full[1] else (trial.seconds, tokens)
    trial.tokens_per_second = counted / seconds if seconds else 0.0
