"""The engine loop, over the fake engine and engines that fail."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections import Counter

import pytest

from hfray.completion import Prompt
from hfray.engines.fake import FakeEngine
from hfray.errors import EngineDiedError
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams

PARAMS = GenerationParams(max_new_tokens=40, temperature=0)
PROMPTS = [Prompt(f"prompt {number}") for number in range(6)]


class Held(FakeEngine):
    """A fake engine that waits in each step until the test releases it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.go, self.added, self.cancelled = threading.Event(), [], []

    def add(self, request):
        self.added.append(request.id)
        super().add(request)

    def step(self):
        assert self.go.wait(60)
        return super().step()

    def cancel(self, request_id):
        self.cancelled.append(request_id)
        super().cancel(request_id)


class Observed(FakeEngine):
    """A fake engine that keeps the loop's counters as they are before each step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.loop, self.seen = None, []

    def step(self):
        self.seen.append(copy.deepcopy(self.loop.stats))
        return super().step()


@pytest.fixture
def held():
    engine = Held(tokens_per_step=4, capacity=4)
    loop = EngineLoop(engine)
    yield loop, engine
    engine.go.set()
    loop.close()


@pytest.fixture
def loop():
    loop = EngineLoop(FakeEngine(context_length=128, tokens_per_step=4, capacity=4))
    yield loop
    loop.close()


def test_completions_are_in_the_prompts_order_and_counted(loop):
    completions = loop.generate(PROMPTS, PARAMS)
    assert [c.text for c in completions] == [loop.generate([prompt], PARAMS)[0].text for prompt in PROMPTS]
    assert loop.stats.rows == 2 * len(PROMPTS)
    assert loop.stats.generated_tokens == 2 * sum(c.num_generated_tokens for c in completions)
    assert loop.stats.steps > 0


def test_the_tokens_of_a_stream_and_before_a_stop_string_may_not_wait(held):
    loop, engine = held
    add, requests = engine.add, []
    engine.add = lambda request: requests.append(request) or add(request)
    loop.submit(PROMPTS[0], PARAMS)
    loop.submit(PROMPTS[1], PARAMS, stream=True)
    loop.submit(PROMPTS[2], PARAMS.with_stop(["never"]))
    engine.go.set()
    loop.generate(PROMPTS[3:4], PARAMS)
    assert [request.may_wait for request in requests] == [True, False, False, True]


def test_counters_grow_with_every_step_not_when_rows_finish():
    """They used to jump when a row finished: a chart showed no token for a minute, and then all of them in a second."""
    engine = Observed(tokens_per_step=4, capacity=1, context_length=128)
    engine.loop = loop = EngineLoop(engine)
    first, second = (loop.submit(prompt, PARAMS) for prompt in PROMPTS[:2])
    lengths = [handle.result(timeout=60).num_generated_tokens for handle in (first, second)]
    loop.close()
    steps, size = -(-lengths[0] // 4), len(PROMPTS[0].text)
    seen = engine.seen[: steps + 1]
    assert [stats.generated_tokens for stats in seen] == [min(4 * step, lengths[0]) for step in range(steps + 1)]
    assert [stats.prompt_tokens for stats in seen] == [0] + [size] * steps
    assert [stats.rows for stats in seen] == [0] * steps + [1]
    assert (loop.stats.generated_tokens, loop.stats.prompt_tokens) == (sum(lengths), 2 * size)


def test_lengths_of_running_and_finished_rows():
    engine = Observed(tokens_per_step=4, capacity=2, context_length=128, fail_on="2")
    engine.loop = loop = EngineLoop(engine)
    handles = [loop.submit(prompt, PARAMS) for prompt in PROMPTS[:4]]
    completions = [handle.result(timeout=60) for handle in handles]
    loop.close()
    running = [stats.running_lengths for stats in engine.seen]
    assert any(lengths[8] for lengths in running)
    assert max(map(sum, running)) <= 4
    assert engine.seen[-1].max_new_tokens == PARAMS.max_new_tokens
    assert sum(loop.stats.running_lengths) == 0
    expected = Counter(completion.num_generated_tokens for completion in completions)
    assert Counter({i: n for i, n in enumerate(loop.stats.answer_lengths) if n}) == expected
    assert expected[0] == 1


def test_rows_that_need_no_engine_have_answers_without_a_token(loop):
    shared = [loop.submit(PROMPTS[0], PARAMS, share=True) for _ in range(3)]
    assert all(handle.result(timeout=60).text for handle in shared)
    loop.refuse("no such column")
    loop.generate(PROMPTS[1:2], PARAMS)
    assert loop.stats.answer_lengths[0] == 3
    assert sum(loop.stats.answer_lengths) == loop.stats.rows == 5


def test_the_loop_calls_back_after_every_step(loop):
    calls = []
    loop.after_step = lambda: calls.append(loop.stats.generated_tokens)
    loop.generate(PROMPTS[:1], PARAMS)
    loop.close()
    assert len(calls) == loop.stats.steps
    assert calls == sorted(calls)
    assert calls[-1] == loop.stats.generated_tokens


def test_a_cancelled_row_is_not_running(held):
    loop, engine = held
    first, second = loop.submit(PROMPTS[0], PARAMS), loop.submit(PROMPTS[1], PARAMS)
    second.cancel()
    engine.go.set()
    assert first.result(timeout=60).text
    loop.generate(PROMPTS[2:3], PARAMS)
    assert sum(loop.stats.running_lengths) == 0
    assert sum(loop.stats.answer_lengths) == 2


def test_a_prompt_that_can_never_run_gets_a_finished_handle(loop):
    handle = loop.submit(Prompt("x" * 200), PARAMS, stream=True)
    assert handle.done()
    assert "128" in handle.result().error
    assert [piece.completion for piece in handle] == [handle.result()]
    loop.generate(PROMPTS[:1], PARAMS)  # the loop has counted the earlier prompt, too
    assert (loop.stats.rows, loop.stats.failed_rows) == (2, 1)


def test_a_stream_can_be_read_from_an_event_loop(loop):
    async def read():
        handle = loop.submit(PROMPTS[0], PARAMS, stream=True)
        return "".join([piece.text async for piece in handle]), (await handle).text

    streamed, whole = asyncio.run(asyncio.wait_for(read(), 60))
    assert streamed == whole == loop.generate(PROMPTS[:1], PARAMS)[0].text


def test_share_and_stream_exclude_each_other(loop):
    with pytest.raises(ValueError, match="share and stream"):
        loop.submit(PROMPTS[0], PARAMS, share=True, stream=True)


def test_followers_wait_for_their_leader(held):
    loop, engine = held
    leader, *followers = [loop.submit(PROMPTS[0], PARAMS, share=True) for _ in range(3)]
    engine.go.set()
    whole, *shared = [handle.result(timeout=60) for handle in (leader, *followers)]
    assert engine.added == [leader.request_id]
    assert [c.text for c in shared] == [whole.text] * 2
    assert whole.token_ids
    assert not any(c.token_ids for c in shared)
    assert loop.stats.shared_rows == 2
    later = loop.submit(PROMPTS[0], PARAMS, share=True)
    assert later.result(timeout=60).text == whole.text
    assert engine.added == [leader.request_id]


def test_a_shared_sequence_ends_when_its_last_follower_is_cancelled(held):
    loop, engine = held
    handles = [loop.submit(PROMPTS[0], PARAMS, share=True) for _ in range(3)]
    blocker = loop.submit(PROMPTS[1], PARAMS)
    handles[0].cancel()
    handles[2].cancel()
    engine.go.set()
    assert handles[1].result(timeout=60).text
    assert blocker.result(timeout=60).text
    assert engine.cancelled == []
    engine.go.clear()
    alone = loop.submit(PROMPTS[2], PARAMS, share=True)
    alone.cancel()
    engine.go.set()
    fresh = loop.submit(PROMPTS[2], PARAMS, share=True)  # gets a leader of its own
    assert fresh.result(timeout=60).text


def test_sampled_prompts_are_not_shared(loop):
    params = GenerationParams(max_new_tokens=40, temperature=1.0)
    handles = [loop.submit(PROMPTS[0], params, sample=number, share=True) for number in range(4)]
    assert len({handle.result(timeout=60).text for handle in handles}) > 1
    assert loop.stats.shared_rows == 0


@pytest.mark.parametrize("method", ["add", "step"])
def test_when_the_engine_dies_every_request_fails(method, monkeypatch):
    """An exception out of `add` used to lose the request that was being added."""
    engine, deaths = FakeEngine(), []

    def die(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(engine, method, die)
    loop = EngineLoop(engine, deaths.append)
    handles = [loop.submit(prompt, PARAMS, share=True) for prompt in PROMPTS]
    for handle in handles:
        with pytest.raises(EngineDiedError, match="planted"):
            handle.result(timeout=60)
    assert len(deaths) == 1
    with pytest.raises(EngineDiedError, match="planted"):
        loop.generate(PROMPTS[:1], PARAMS)
    loop.close()
    assert len(deaths) == 1


def test_a_closed_loop_refuses_prompts(loop):
    loop.close()
    with pytest.raises(EngineDiedError, match="closed"):
        loop.generate(PROMPTS[:1], PARAMS)


def test_a_handle_cancelled_before_it_is_added_never_reaches_the_engine(held):
    loop, engine = held
    first = loop.submit(PROMPTS[0], PARAMS)
    second = loop.submit(PROMPTS[1], PARAMS)
    second.cancel()
    engine.go.set()
    assert first.result(timeout=60).text
    third = loop.submit(PROMPTS[2], PARAMS)
    assert third.result(timeout=60).text
    assert loop.engine.num_unfinished == 0
    assert second.cancelled()
