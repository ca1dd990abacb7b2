"""One engine and one prompt renderer, for the batch job and the online service."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfray.cluster.pools import workers_of
from hfray.completion import Completion, Prompt
from hfray.errors import EngineDiedError, RequestError
from hfray.inference.handle import Handle, gather
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams

if TYPE_CHECKING:
    from hfray.config.batch import BatchSettings
    from hfray.config.serve import ServeSettings


class Worker:
    """Completes records. The caller decides how many records run at once.

    Attributes:
        choice: why this engine runs, if the settings left that to hfray (`backend=auto`).

    Args:
        settings: the engine's settings and the prompt's.
        folder: the prepared model folder; None prepares it here.
        threads: CPU threads for the engine.
        on_death: called on the loop's thread when the engine dies.
        apart: run the engine in a separate process if its steps would block this one
            (`hfray.engines.process.load_apart`).
    """

    def __init__(
        self,
        settings: BatchSettings | ServeSettings,
        folder: Path | None = None,
        threads: int | None = None,
        on_death: Callable[[EngineDiedError], None] | None = None,
        apart: bool = False,
    ) -> None:
        from hfray.engines.choice import resolve
        from hfray.engines.load import load_engine
        from hfray.engines.process import load_apart
        from hfray.inference.prompts import RecordPrompt

        settings, choice = resolve(settings, folder, fixed_params=not apart)
        self.choice = None if choice is None else choice.reason
        self.settings, self._params = settings, settings.params
        load = load_apart if apart else load_engine
        share = workers_of(settings).gpu_share
        self.loop = EngineLoop(load(settings, folder=folder, threads=threads, gpu_share=share), on_death)
        self.prompts = RecordPrompt(settings.prompt, self.loop.engine.tokenizer, settings.response)
        # The columns that `params_of` and the prompts read; all columns if it is empty.
        self.columns = list(self.prompts.variables)
        choices = settings.response.choice_column
        if choices is not None and self.columns and choices not in self.columns:
            self.columns.append(choices)
        self._calls: set[_Call] = set()

    @property
    def answered_rows(self) -> int:
        """Finished rows of the `answer` calls that have not returned yet."""
        return sum(call.count_finished() for call in list(self._calls))

    def params_of(self, row: Mapping[str, object]) -> GenerationParams:
        """The parameters of one record. Raises RequestError if its column of choices holds none."""
        response = self.settings.response
        if response.choice_column is None:
            return self._params
        choices: Any = row.get(response.choice_column)
        given = isinstance(choices, list) and all(isinstance(choice, str) and choice for choice in choices)
        if not choices or not given or len(set(choices)) < len(choices):
            raise RequestError(
                f"column {response.choice_column!r} must hold a list of different texts (response.choice), not {choices!r}"
            )
        return dataclasses.replace(self._params, response=response.of_choices(choices))

    async def answer(
        self, row_ids: Sequence[str], rows: Sequence[Mapping[str, object]], errors: Sequence[str | None]
    ) -> tuple[list[str | None], list[Completion]]:
        """Prompts and completions of records, in order. A row with an entry in `errors` keeps that error.

        A sampled row draws its random numbers from its id: equal prompts get different completions, and a repeated
        row gets the same one.

        Raises:
            EngineDiedError: the engine died.
        """
        call = _Call(len(rows))
        self._calls.add(call)
        try:
            # Rendering and tokenizing take long; on the event loop they would block every other call.
            await asyncio.to_thread(self._submit, call, row_ids, rows, errors)
            return call.prompts, await gather([call.handles[i] for i in range(len(rows))])
        finally:
            self._calls.discard(call)

    def _submit(
        self,
        call: _Call,
        row_ids: Sequence[str],
        rows: Sequence[Mapping[str, object]],
        errors: Sequence[str | None],
    ) -> None:
        prompts: list[tuple[str, int, Prompt, GenerationParams]] = []
        for i, (row, error) in enumerate(zip(rows, errors, strict=True)):
            try:
                if error is not None:
                    raise RequestError(error)
                prompt, params = self.prompts.render(row), self.params_of(row)
            except RequestError as fault:
                call.handles[i] = self.loop.refuse(str(fault))
                continue
            call.prompts[i] = prompt.text
            prompts.append((prompt.text, i, prompt, params))
        prompts.sort(key=itemgetter(0))  # prompts with a common beginning run together and hit the prefix cache
        for _, i, prompt, params in prompts:
            call.handles[i] = self.loop.submit(prompt, params, sample=row_ids[i], share=True)


class _Call:
    """The rows of one call of `answer`."""

    def __init__(self, count: int) -> None:
        self.prompts: list[str | None] = [None] * count
        self.handles: dict[int, Handle] = {}

    def count_finished(self) -> int:
        return sum(handle.done() for handle in list(self.handles.values()))
