"""The handle of one answer: a future of the completion, and a stream of its pieces if the caller asked for one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from hfray.completion import Completion
from hfray.errors import EngineDiedError

Token = tuple[int, float, list[tuple[int, float]]]  # id, log-probability, the likeliest tokens' (id, log-probability)


@dataclass(slots=True)
class Piece:
    """The part of an answer that arrived since the reader last looked. The last piece carries the completion."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    completion: Completion | None = None


class Handle(Future[Completion]):
    """One answer that an engine loop computes.

    As a `concurrent.futures.Future` it works with `wait`, `as_completed` and `add_done_callback`; it can be awaited
    and iterated over too. `result()` is the completion; if the prompt was at fault, its `error` is set. If the engine
    died, `result()` raises EngineDiedError. Done callbacks run on the loop's thread and must return at once.

    Attributes:
        submitted, first_token, last_token: times on the monotonic clock; None: no token yet.
        num_tokens: tokens generated so far.
        request_id: the engine's number of the request that computes the answer.
    """

    def __init__(self, drop: Callable[[Handle], None] | None = None, *, stream: bool = False) -> None:
        super().__init__()
        self.submitted = time.monotonic()
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.num_tokens = 0
        self.request_id = 0
        self._drop = [drop] if drop else []
        self._pieces: deque[Piece] | None = deque() if stream else None
        self._held: list[Token] = []  # tokens without text yet
        self._wake: Callable[[], None] | None = None
        self._end_taken = False

    @classmethod
    def finished(cls, completion: Completion) -> Handle:
        """The handle of an answer that is known already."""
        handle = cls()
        handle.finish(completion)
        return handle

    @property
    def streams(self) -> bool:
        """Whether pieces arrive before the completion does."""
        return self._pieces is not None

    # --- the caller's side -------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Cancel the answer; the engine frees its slot at the next step. Returns False if the answer is complete."""
        if not super().cancel():
            return False
        with contextlib.suppress(IndexError):  # `pop` is atomic: only the first call gets the function
            drop = self._drop.pop()
            self.set_running_or_notify_cancel()
            drop(self)
        return True

    def take(self) -> Piece | None:
        """What has arrived since the last call, in one piece; None: nothing. Never waits. For one reader only."""
        if self._end_taken:
            return None
        done = self.done()  # first: nothing arrives after the end
        parts = []
        while self._pieces:
            parts.append(self._pieces.popleft())
        if not parts and not done:
            return None
        piece = Piece("".join(part.text for part in parts), [token for part in parts for token in part.tokens])
        if done:
            self._end_taken = True
            piece.completion = self.result()
            piece.tokens += self._held
        return piece

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever there may be something to take, on any thread; it must return at once."""
        self._wake = wake
        if self._pieces:
            wake()
        self.add_done_callback(lambda _: wake())

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they arrive, the last with the completion. Raises EngineDiedError."""
        arrived = threading.Event()
        self.watch(arrived.set)
        while not self._end_taken:
            arrived.wait()
            arrived.clear()
            piece = self.take()
            if piece is not None:
                yield piece

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """As `__iter__`."""
        async for _, piece in merge([self]):
            yield piece

    def __await__(self) -> Generator[None, None, Completion]:
        return asyncio.wrap_future(self).__await__()

    # --- the loop's side ---------------------------------------------------------------------------------------

    def count(self, tokens: int, now: float) -> None:
        """Record that the step that ended at `now` generated `tokens` tokens."""
        if self.first_token is None:
            self.first_token = now
        self.last_token = now
        self.num_tokens += tokens

    def push(self, text: str, tokens: Sequence[Token] = ()) -> None:
        """Add to the stream. Tokens without text (half a character, the start of a stop string) wait for their text."""
        if self._pieces is None:
            return
        self._held.extend(tokens)
        if not text:
            return
        self._pieces.append(Piece(text, self._held))
        self._held = []
        if len(self._pieces) == 1 and self._wake is not None:  # with more, the reader is awake already
            self._wake()

    def finish(self, outcome: Completion | EngineDiedError) -> None:
        """Set the outcome, unless the handle was cancelled or has one."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, Completion):
                self.set_result(outcome)
            else:
                self.set_exception(outcome)


async def gather(handles: Sequence[Handle]) -> list[Completion]:
    """Wait for all completions, in order; wakes the event loop once. Raises EngineDiedError."""
    loop = asyncio.get_running_loop()
    done, missing = asyncio.Event(), itertools.count(len(handles), -1)

    def count_down(_: Future[Completion] | None = None) -> None:
        if next(missing) == 0:  # atomic
            _call_soon(loop, done.set)

    for handle in handles:
        handle.add_done_callback(count_down)
    count_down()
    await done.wait()
    return [handle.result() for handle in handles]


async def merge(handles: Sequence[Handle]) -> AsyncIterator[tuple[int, Piece]]:
    """Pieces of several handles as they arrive, each with its handle's index. Raises EngineDiedError."""
    loop, arrived, ready = asyncio.get_running_loop(), asyncio.Event(), deque[int]()

    def wake(index: int) -> None:
        ready.append(index)
        if len(ready) == 1:  # with more, the reader is awake already
            _call_soon(loop, arrived.set)

    for index, handle in enumerate(handles):
        handle.watch(functools.partial(wake, index))
    missing = len(handles)
    while missing:
        await arrived.wait()
        arrived.clear()
        while ready:
            index = ready.popleft()
            piece = handles[index].take()
            if piece is not None:
                missing -= piece.completion is not None
                yield index, piece


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody reads
        loop.call_soon_threadsafe(function)
