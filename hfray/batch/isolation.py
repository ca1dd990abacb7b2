"""Who may use the engine at once: all blocks together, or a suspect row's with nothing beside it."""

from __future__ import annotations

import asyncio


class Gate:
    """Many may be inside, or one alone; for the coroutines of one event loop."""

    def __init__(self) -> None:
        self._inside = 0
        self._changed = asyncio.Condition()
        self._exclusive = asyncio.Lock()

    def shared(self) -> _Pass:
        return _Pass(self, alone=False)

    def alone(self) -> _Pass:
        return _Pass(self, alone=True)


class _Pass:
    def __init__(self, gate: Gate, alone: bool) -> None:
        self._gate, self._alone = gate, alone

    async def __aenter__(self) -> None:
        gate = self._gate
        await gate._exclusive.acquire()
        if self._alone:
            async with gate._changed:
                await gate._changed.wait_for(lambda: gate._inside == 0)
            return
        gate._inside += 1
        gate._exclusive.release()

    async def __aexit__(self, *_: object) -> None:
        gate = self._gate
        if self._alone:
            gate._exclusive.release()
            return
        async with gate._changed:
            gate._inside -= 1
            gate._changed.notify_all()
