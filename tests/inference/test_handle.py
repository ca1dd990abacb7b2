"""The handle of one answer, without an engine: the test takes the place of the loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, wait

import pytest

from hfray.completion import Completion
from hfray.errors import EngineDiedError
from hfray.inference.handle import Handle, Piece, gather, merge

DONE = Completion("ab", "stop", num_generated_tokens=2)


def test_the_result_is_the_completion_or_the_engines_death():
    handle = Handle()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0)
    handle.finish(DONE)
    assert handle.result() is DONE
    dead = Handle()
    dead.finish(EngineDiedError("gone"))
    with pytest.raises(EngineDiedError, match="gone"):
        dead.result()


def test_only_the_first_outcome_counts():
    handle = Handle()
    handle.finish(DONE)
    handle.finish(EngineDiedError("too late"))
    assert handle.result() is DONE


def test_cancel_drops_the_request_once_and_wakes_the_waiting_thread():
    dropped = []
    handle = Handle(dropped.append)
    waiting = threading.Thread(target=wait, args=([handle],))
    waiting.start()
    assert handle.cancel()
    assert handle.cancel()
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    assert dropped == [handle]
    handle.finish(DONE)  # the loop's completion arrives too late
    with pytest.raises(CancelledError):
        handle.result()


def test_a_finished_handle_cannot_be_cancelled():
    dropped = []
    handle = Handle(dropped.append)
    handle.finish(DONE)
    assert not handle.cancel()
    assert not dropped


def test_count_records_the_times_of_first_and_last_token():
    handle = Handle()
    for tokens, now in ((1, 5.0), (2, 6.0), (1, 8.0)):
        handle.count(tokens, now)
    assert (handle.first_token, handle.last_token, handle.num_tokens) == (5.0, 8.0, 4)


def test_take_joins_all_unread_pieces():
    handle = Handle(stream=True)
    assert handle.take() is None
    handle.push("a", [(1, -0.1, [])])
    handle.push("", [(2, -0.2, [])])  # half a character: its token waits for the text
    handle.push("b")
    assert handle.take() == Piece("ab", [(1, -0.1, []), (2, -0.2, [])])
    assert handle.take() is None
    handle.push("", [(3, -0.3, [])])
    handle.finish(DONE)
    assert handle.take() == Piece("", [(3, -0.3, [])], DONE)
    assert handle.take() is None


def test_a_handle_without_a_stream_keeps_no_pieces():
    handle = Handle()
    handle.push("a")
    handle.finish(DONE)
    assert handle.take() == Piece(completion=DONE)


def test_iteration_ends_with_the_completion():
    handle, read = Handle(stream=True), []
    reader = threading.Thread(target=lambda: read.extend(handle))
    reader.start()
    for text in ("a", "b"):
        handle.push(text)
    handle.finish(DONE)
    reader.join(timeout=60)
    assert "".join(piece.text for piece in read) == "ab"
    assert [piece.completion for piece in read if piece.completion] == [DONE]
    assert read[-1].completion is DONE


def test_iteration_raises_when_the_engine_dies():
    handle = Handle(stream=True)
    handle.push("a")
    handle.finish(EngineDiedError("gone"))
    with pytest.raises(EngineDiedError, match="gone"):
        list(handle)


def _play(handles):
    """Answers all handles from a thread, token by token."""

    def run():
        for text in "abc":
            for handle in handles:
                handle.push(text)
        for handle in handles:
            handle.finish(DONE)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_merge_reads_several_streams():
    async def read():
        handles = [Handle(stream=True) for _ in range(20)]
        thread, texts, ended = _play(handles), [""] * 20, set()
        async for index, piece in merge(handles):
            assert index not in ended
            texts[index] += piece.text
            if piece.completion:
                ended.add(index)
        thread.join()
        return texts, ended

    texts, ended = asyncio.run(asyncio.wait_for(read(), 60))
    assert texts == ["abc"] * 20
    assert ended == set(range(20))


def test_a_slow_reader_gets_fewer_pieces_and_the_whole_text():
    async def read():
        handle = Handle(stream=True)
        _play([handle]).join()
        return [piece async for piece in handle]

    assert asyncio.run(read()) == [Piece("abc", [], DONE)]


def test_gather_returns_all_completions_in_order_and_await_returns_one():
    async def read():
        handles = [Handle() for _ in range(5)]
        thread = threading.Thread(target=lambda: [h.finish(Completion(str(i))) for i, h in enumerate(handles)])
        thread.start()
        completions = await gather(handles)
        thread.join()
        return [c.text for c in completions], (await handles[3]).text, await gather([])

    assert asyncio.run(asyncio.wait_for(read(), 60)) == (list("01234"), "3", [])


def test_cancelling_the_awaiting_task_cancels_the_answer():
    async def read():
        handle = Handle()
        task = asyncio.ensure_future(_wait_for(handle))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return handle.cancelled()

    async def _wait_for(handle):
        return await handle

    assert asyncio.run(read())


def test_a_closed_event_loop_does_not_disturb_the_engine():
    handle = Handle(stream=True)

    async def leave():
        stream = merge([handle])
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        reading.cancel()

    asyncio.run(leave())
    handle.push("a")
    handle.finish(DONE)
    assert handle.result() is DONE
