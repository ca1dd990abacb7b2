"""One engine and one prompt renderer, for the batch job and the online service."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from hfray.completion import Completion, Prompt
from hfray.errors import RequestError
from hfray.inference.loop import EngineDiedError, EngineLoop


class Worker:
    """Records in, completions out; as many records at once as its caller sends.

    Args:
        settings: an `EngineSettings` that also has a `prompt`.
        folder: the prepared model folder, or None to prepare it here.
        threads: CPU threads for the engine.
        apart: keep this process free while the engine steps (`hfray.engines.process.load_apart`).
    """

    def __init__(
        self,
        settings: Any,
        folder: Path | None = None,
        threads: int | None = None,
        on_death: Any = None,
        apart: bool = False,
    ) -> None:
        from hfray.engines.load import load_engine
        from hfray.engines.process import load_apart
        from hfray.inference.prompts import RecordPrompt

        self.settings, self._params = settings, settings.params
        load = load_apart if apart else load_engine
        self.loop = EngineLoop(load(settings, folder=folder, threads=threads), on_death)
        self.prompts = RecordPrompt(settings.prompt, self.loop.engine.tokenizer)
        self._open: set[_Answers] = set()

    @property
    def answered_rows(self) -> int:
        """Rows that are answered, of the calls of `answer` that have not returned yet."""
        return sum(answers.count for answers in list(self._open))

    async def answer(
        self, row_ids: Sequence[str], rows: Sequence[Mapping[str, Any]], errors: Sequence[str | None]
    ) -> tuple[list[str | None], list[Completion]]:
        """Prompts and completions of records, in order; a row whose `errors` entry is set keeps that error.

        Sampled rows draw their random numbers from their ids: equal prompts are answered unlike, a row always alike.

        Raises:
            EngineDiedError: the engine died under them.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answers = _Answers(len(rows), done)
        self._open.add(answers)
        try:
            # Rendering and tokenizing take long; on the event loop they would hold up every other block.
            await asyncio.to_thread(self._submit, row_ids, rows, errors, answers)
            await done
        finally:
            self._open.discard(answers)
        return answers.prompts, answers.completions

    def _submit(
        self,
        row_ids: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        errors: Sequence[str | None],
        answers: _Answers,
    ) -> None:
        prompts: list[tuple[str, int, Prompt]] = []
        for i, (row, error) in enumerate(zip(rows, errors, strict=True)):
            try:
                if error is not None:
                    raise RequestError(error)
                prompt: Prompt = self.prompts.render(row)
            except RequestError as fault:
                answers.put(i, Completion(error=str(fault)))
                continue
            answers.prompts[i] = prompt.text
            prompts.append((prompt.text, i, prompt))
        prompts.sort(key=itemgetter(0))  # those that begin alike one after the other: the prefix cache has them then
        for _, i, prompt in prompts:
            self.loop.submit(prompt, self._params, functools.partial(answers.put, i), sample=row_ids[i], share=True)


class _Answers:
    """Completions as they come, from the loop's thread; wakes the waiting coroutine at the last."""

    def __init__(self, count: int, done: asyncio.Future[None]) -> None:
        self.prompts: list[str | None] = [None] * count
        self.completions: list[Any] = [None] * count
        self._missing, self._done, self._lock = count, done, threading.Lock()
        if not count:
            done.set_result(None)

    @property
    def count(self) -> int:
        """Rows that have their completion."""
        return len(self.completions) - self._missing

    def put(self, i: int, outcome: Completion | EngineDiedError) -> None:
        with self._lock:
            if self.completions[i] is not None:
                raise RuntimeError(f"row {i} was answered twice")
            self.completions[i] = outcome
            self._missing -= 1
            last = self._missing == 0
        if last:
            self._done.get_loop().call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._done.done():
            return
        died = next((c for c in self.completions if isinstance(c, EngineDiedError)), None)
        if died is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(died)
