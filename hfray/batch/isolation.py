"""Finds the rows that kill their worker: suspect rows run in ever smaller groups, with nothing beside them.

Every row that was in flight when a worker died is a suspect. Suspects of one death run as usual, suspects of two deaths
run in small groups, suspects of three deaths run alone. A row that was at FATAL_DEATHS deaths, the last time alone, is
the culprit and becomes an error row.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from hfray.completion import Completion

Row = Mapping[str, object]
Answers = tuple[list[str | None], list[Completion]]
Answer = Callable[[Sequence[str], Sequence[Row], Sequence[str | None]], Awaitable[Answers]]
ReportAlone = Callable[[Sequence[str]], Awaitable[object]]

FATAL_DEATHS = 4
ISOLATED_FROM = 2  # a row that was at this many deaths runs in a group of suspects
GROUP_SIZES = {2: 8, 3: 1}  # rows in a group, by deaths


class Isolation:
    """Answers blocks: ordinary blocks side by side, groups of suspect rows with nothing beside them.

    Args:
        answer: answers rows given their ids, values and errors; returns prompts and completions.
        report_alone: takes the ids of the rows that run alone from now on, an empty list after they are answered.
    """

    def __init__(self, answer: Answer, report_alone: ReportAlone) -> None:
        self._answer, self._report_alone = answer, report_alone
        self._gate = Gate()

    async def answer(
        self,
        row_ids: Sequence[str],
        rows: Sequence[Row],
        errors: Sequence[str | None],
        deaths: Mapping[str, int],
    ) -> Answers:
        """Prompts and completions of the rows of a block, in order.

        Args:
            errors: why a row cannot be answered, None for a good row.
            deaths: how many deaths of a worker each suspect row was at.
        """
        if all(count < ISOLATED_FROM for count in deaths.values()):
            async with self._gate.shared():
                return await self._answer(row_ids, rows, errors)
        errors = [
            culprit_error(deaths.get(row_id, 0)) if error is None else error
            for row_id, error in zip(row_ids, errors, strict=True)
        ]
        prompts: dict[int, str | None] = {}
        completions: dict[int, Completion] = {}
        for group in groups(row_ids, deaths):
            ids = [row_ids[n] for n in group]
            async with self._gate.alone():
                await self._report_alone(ids)
                answered = await self._answer(ids, [rows[n] for n in group], [errors[n] for n in group])
                await self._report_alone([])
            for n, prompt, completion in zip(group, *answered, strict=True):
                prompts[n], completions[n] = prompt, completion
        order = range(len(row_ids))
        return [prompts[n] for n in order], [completions[n] for n in order]


def groups(row_ids: Sequence[str], deaths: Mapping[str, int]) -> list[list[int]]:
    """The positions of the rows, in groups that run one after the other, the most suspect rows first."""
    order = sorted(range(len(row_ids)), key=lambda n: -deaths.get(row_ids[n], 0))
    found = []
    while order:
        worst = deaths.get(row_ids[order[0]], 0)
        size = 1 if worst >= FATAL_DEATHS else GROUP_SIZES.get(worst, len(order))
        found.append(order[:size])
        order = order[size:]
    return found


def culprit_error(deaths: int) -> str | None:
    """The error of a row that killed its worker while it ran alone, None for any other row."""
    if deaths < FATAL_DEATHS:
        return None
    return f"this row ended its worker's process {deaths} times, the last time while it ran alone"


class Gate:
    """Lets many coroutines in together, or one alone. For the coroutines of one event loop."""

    def __init__(self) -> None:
        self._inside = 0
        self._changed = asyncio.Condition()
        self._entrance = asyncio.Lock()  # held by a coroutine that is alone inside, or waits to be

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Be inside together with others."""
        async with self._entrance:
            self._inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be inside alone; new coroutines wait outside until then."""
        async with self._entrance:
            async with self._changed:
                await self._changed.wait_for(lambda: self._inside == 0)
            yield
