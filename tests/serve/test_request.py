"""The session of one HTTP request, with an engine loop that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hfray.completion import Completion, Prompt
from hfray.errors import EngineDiedError, RequestError
from hfray.inference.handle import Handle
from hfray.params import GenerationParams
from hfray.serve.request import Session

PARAMS = GenerationParams()


class Loop:
    """Hands out handles and lets the test finish them; prompts in `refused` fail at once."""

    def __init__(self, *refused: str) -> None:
        self.handles: list[Handle] = []
        self.asked: list[tuple[str, int | str]] = []
        self.dropped: list[Handle] = []
        self._refused = refused

    def submit(self, prompt: Prompt, params: GenerationParams, *, sample: int | str, stream: bool) -> Handle:
        self.asked.append((prompt.text, sample))
        if prompt.text in self._refused:
            return Handle.finished(Completion(error="too long"))
        self.handles.append(Handle(self.dropped.append, stream=stream))
        return self.handles[-1]


def run(loop: Any, use: Callable[[Session], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        session = Session(loop)
        try:
            return await use(session)
        finally:
            session.close()

    return asyncio.run(asyncio.wait_for(main(), 30))


def prompts(*texts: str) -> Callable[[], list[Prompt]]:
    return lambda: [Prompt(text) for text in texts]


def done(text: str) -> Completion:
    return Completion(text, "stop", num_prompt_tokens=2, num_generated_tokens=1)


def test_completions_come_in_order_of_prompts_and_samples():
    loop = Loop()

    async def use(session: Session) -> list[str | None]:
        await session.start(prompts("a", "b"), PARAMS, samples=range(2))
        for number in (3, 1, 0, 2):
            loop.handles[number].finish(done(str(number)))
        texts = [completion.text for completion in await session.completions()]
        assert session.prompt_tokens == 8
        return texts

    assert run(loop, use) == ["0", "1", "2", "3"]
    assert loop.asked == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert loop.dropped == []


def test_close_cancels_unfinished_completions():
    loop = Loop()

    async def use(session: Session) -> None:
        await session.start(prompts("a", "b"), PARAMS)
        loop.handles[0].finish(done("x"))

    run(loop, use)
    assert loop.dropped == [loop.handles[1]]


def test_a_prompt_that_can_never_run_is_an_error_at_the_start():
    async def use(session: Session) -> None:
        with pytest.raises(RequestError, match="too long"):
            await session.start(prompts("long", "b"), PARAMS)

    loop = Loop("long")
    run(loop, use)
    assert loop.asked == [("long", 0)]


def test_a_prompt_that_cannot_be_rendered_is_an_error_at_the_start():
    def fail() -> list[Prompt]:
        raise RequestError("no template")

    async def use(session: Session) -> None:
        with pytest.raises(RequestError, match="no template"):
            await session.start(fail, PARAMS)

    run(Loop(), use)


def test_the_first_piece_is_not_lost():
    loop = Loop()

    async def use(session: Session) -> str:
        await session.start(prompts("a"), PARAMS, stream=True)
        loop.handles[0].push("one ")
        await session.wait_for_first()
        loop.handles[0].push("two")
        loop.handles[0].finish(done("one two"))
        pieces = [piece async for _, piece in session.pieces()]
        assert pieces[-1].completion is not None
        return "".join(piece.text for piece in pieces)

    assert run(loop, use) == "one two"


def test_a_stream_that_fails_before_its_first_piece_is_an_error():
    loop = Loop()

    async def use(session: Session) -> None:
        await session.start(prompts("a"), PARAMS, stream=True)
        loop.handles[0].finish(Completion(error="told to fail"))
        with pytest.raises(RequestError, match="told to fail"):
            await session.wait_for_first()

    run(loop, use)


@pytest.mark.parametrize("stream", [True, False])
def test_fail_ends_the_wait(stream):
    async def use(session: Session) -> None:
        await session.start(prompts("a", "b"), PARAMS, stream=stream)
        session.fail(EngineDiedError("dead"))
        with pytest.raises(EngineDiedError):
            await (session.wait_for_first() if stream else session.completions())

    run(Loop(), use)
