"""The completions of one HTTP request: into the engine, out as they come, and dropped when nobody waits any more."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfray.completion import Completion, Prompt
from hfray.engines.base import GenerationParams, RequestError, StepOutput
from hfray.inference.loop import EngineDiedError, EngineLoop

Token = tuple[int, float, list[tuple[int, float]]]  # id, log-probability, the likeliest tokens' ids and theirs


@dataclass(slots=True)
class Piece:
    """What came for one of a session's completions: text, its tokens where wanted, and its end with the last."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    outcome: Completion | None = None


@dataclass(slots=True)
class Timing:
    """When tokens of one completion came, on the monotonic clock."""

    submitted: float
    first: float | None = None
    last: float = 0.0
    tokens: int = 0


class Session:
    """Completions of one request, numbered in the order of their prompts, the samples of a prompt together.

    Belongs to the event loop that it is made on. `close` must follow: it takes what still runs out of the engine.
    """

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._aio = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._early: list[Piece] = []  # looked at by `wait_for_first`
        self._lock = threading.Lock()
        self._running: dict[int, int | None] = {}
        self._fresh: dict[int, list[Token]] = {}
        self._closed = False
        self._fault: str | None = None
        self.started = time.monotonic()
        self.timings: list[Timing] = []
        self.prompt_tokens = 0

    async def start(
        self,
        render: Callable[[], Sequence[Prompt]],
        params: GenerationParams,
        *,
        samples: Sequence[int | str] = (0,),
        stream: bool = False,
    ) -> None:
        """Render the prompts and send them to the engine, on a thread: both take long where they are long.

        Args:
            samples: a completion of each prompt for each of these, drawn with a seed of its own (`EngineLoop.submit`).

        Raises:
            RequestError: a prompt cannot be rendered or can never run; the message is for the client.
        """
        await asyncio.to_thread(self._submit, render, params, samples, stream)
        if self._fault is not None:
            raise RequestError(self._fault)

    async def pieces(self) -> AsyncIterator[Piece]:
        """What comes, until every completion has ended; pieces that pile up are joined. Raises EngineDiedError."""
        missing = len(self.timings)
        while missing:
            waiting = self._early or [await self._events.get()]
            self._early = []
            while not self._events.empty():
                waiting.append(self._events.get_nowait())
            for piece in _joined(waiting):
                missing -= piece.outcome is not None
                yield piece

    async def wait_for_first(self) -> None:
        """Until there is something to stream. Raises RequestError or EngineDiedError where there never will be."""
        event = await self._events.get()
        if self._fault is not None:
            raise RequestError(self._fault)
        if isinstance(event, EngineDiedError):
            raise event
        self._early.append(event)

    async def completions(self) -> list[Completion]:
        """All completions, in order, failed ones too. Raises EngineDiedError."""
        ended = {piece.index: piece.outcome async for piece in self.pieces() if piece.outcome is not None}
        return [ended[index] for index in range(len(self.timings))]

    def fail(self, error: EngineDiedError) -> None:
        """End the wait: the engine will not answer any more."""
        self._events.put_nowait(error)

    def close(self) -> None:
        """Take what still runs out of the engine; its slots are free from the engine's next step on."""
        with self._lock:
            self._closed = True
            running = [request_id for request_id in self._running.values() if request_id is not None]
            self._running.clear()
        for request_id in running:
            self._loop.cancel(request_id)

    # --- a thread of its own -----------------------------------------------------------------------------------

    def _submit(
        self,
        render: Callable[[], Sequence[Prompt]],
        params: GenerationParams,
        samples: Sequence[int | str],
        stream: bool,
    ) -> None:
        work = [(prompt, sample) for prompt in render() for sample in samples]
        self.timings = [Timing(time.monotonic()) for _ in work]
        for index, (prompt, sample) in enumerate(work):
            if self._closed or self._fault is not None:
                return
            with self._lock:
                self._running[index] = None
            request_id = self._loop.submit(
                prompt,
                params,
                functools.partial(self._end, index),
                functools.partial(self._text, index) if stream else None,
                sample,
                functools.partial(self._step, index, stream and params.logprobs is not None),
            )
            with self._lock:
                if index in self._running:
                    self._running[index] = request_id
                elif self._closed and request_id is not None:  # closed while it was on its way in
                    self._loop.cancel(request_id)

    # --- the engine loop's thread ------------------------------------------------------------------------------

    def _step(self, index: int, keep_tokens: bool, output: StepOutput) -> None:
        timing, now = self.timings[index], time.monotonic()
        if output.token_ids:
            timing.first = now if timing.first is None else timing.first
            timing.last = now
            timing.tokens += len(output.token_ids)
        if keep_tokens:
            tokens = zip(output.token_ids, output.logprobs, strict=False)
            self._fresh.setdefault(index, []).extend((token, *logprob) for token, logprob in tokens)

    def _text(self, index: int, delta: str) -> None:
        self._put(Piece(index, delta, self._fresh.pop(index, [])))

    def _end(self, index: int, outcome: Completion | EngineDiedError) -> None:
        with self._lock:
            self._running.pop(index, None)
        if isinstance(outcome, EngineDiedError):
            self._put(outcome)
            return
        if outcome.error is not None:
            self._fault = outcome.error
        self.prompt_tokens += outcome.num_prompt_tokens
        self._put(Piece(index, "", self._fresh.pop(index, []), outcome))

    def _put(self, event: Any) -> None:
        if not self._aio.is_closed():
            self._aio.call_soon_threadsafe(self._events.put_nowait, event)


def _joined(events: Sequence[Piece | EngineDiedError]) -> list[Piece]:
    """Pieces that follow one another for the same completion, as one. Raises an EngineDiedError among them."""
    pieces: dict[int, Piece] = {}
    for event in events:
        if isinstance(event, EngineDiedError):
            raise event
        known = pieces.setdefault(event.index, event)
        if known is not event:
            known.text += event.text
            known.tokens += event.tokens
            known.outcome = event.outcome
    return list(pieces.values())
