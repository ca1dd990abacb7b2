"""The completions of one HTTP request, and what cancels them when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from hfray.completion import Completion, Prompt
from hfray.engines.base import GenerationParams, RequestError
from hfray.errors import EngineDiedError
from hfray.inference.handle import Handle, Piece, gather, merge
from hfray.inference.loop import EngineLoop


class Session:
    """Completions of one request, in the order of their prompts; samples of one prompt follow each other.

    Belongs to the event loop that creates it. Call `close` at the end: it cancels what still runs.
    """

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._stream: AsyncIterator[tuple[int, Piece]] | None = None
        self._early: list[tuple[int, Piece]] = []  # read by `wait_for_first`
        self._closed = False
        self._death: EngineDiedError | None = None
        self.started = time.monotonic()
        self.handles: list[Handle] = []

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of the completions that have finished."""
        finished = [handle for handle in self.handles if handle.done() and not handle.cancelled()]
        return sum(handle.result().num_prompt_tokens for handle in finished if handle.exception() is None)

    async def start(
        self,
        render: Callable[[], Sequence[Prompt]],
        params: GenerationParams,
        *,
        samples: Sequence[int | str] = (0,),
        stream: bool = False,
    ) -> None:
        """Render the prompts and send them to the engine, on a thread: long prompts take long.

        Args:
            samples: each prompt gets one completion for each of these, with its own seed (`EngineLoop.submit`).

        Raises:
            RequestError: a prompt cannot be rendered or can never run; the message is for the client.
        """
        await asyncio.to_thread(self._submit, render, params, samples, stream)
        for handle in self.handles:
            _check(handle)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces of all completions as they arrive, each with its completion's number. Raises EngineDiedError."""
        while self._early:
            yield self._early.pop()
        async for event in self._stream or merge(self.handles):
            yield event

    async def wait_for_first(self) -> None:
        """Wait for the first piece. Raises RequestError or EngineDiedError if there never will be one."""
        self._stream = merge(self.handles)
        async for index, piece in self._stream:
            _check(self.handles[index])
            self._early.append((index, piece))
            return

    async def completions(self) -> list[Completion]:
        """All completions, in order. Raises EngineDiedError."""
        return await gather(self.handles)

    def fail(self, error: EngineDiedError) -> None:
        """End the wait: the engine no longer answers."""
        self._death = error
        for handle in list(self.handles):
            handle.finish(error)

    def close(self) -> None:
        """Cancel what still runs; its slots are free from the engine's next step on."""
        self._closed = True
        for handle in list(self.handles):
            handle.cancel()

    def _submit(
        self,
        render: Callable[[], Sequence[Prompt]],
        params: GenerationParams,
        samples: Sequence[int | str],
        stream: bool,
    ) -> None:
        """Submit the prompts. Runs on a separate thread."""
        for prompt, sample in [(prompt, sample) for prompt in render() for sample in samples]:
            handle = self._loop.submit(prompt, params, sample=sample, stream=stream)
            self.handles.append(handle)
            if self._death is not None:
                handle.finish(self._death)
            if self._closed:
                handle.cancel()
            if self._closed or (handle.done() and handle.exception() is None and handle.result().error):
                return


def _check(handle: Handle) -> None:
    """Raises RequestError if the answer is there and says that the prompt was at fault."""
    if handle.done() and not handle.cancelled() and handle.exception() is None:
        error = handle.result().error
        if error is not None:
            raise RequestError(error)
