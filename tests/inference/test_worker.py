"""The worker over the fake engine, without Ray."""

from __future__ import annotations

import asyncio

import pytest

from hfray.errors import EngineDiedError
from hfray.inference.worker import Worker
from tests.conftest import batch_settings


def make(*overrides):
    return Worker(batch_settings("conf=fake", "prompt.template={a}", "input.path=-", "output.path=-", *overrides))


@pytest.fixture
def worker():
    worker = make("backend.fail_on=bad")
    yield worker
    worker.loop.close()


def answer(worker, texts, errors=None):
    rows = [{"a": text} for text in texts]
    call = worker.answer([str(i) for i in range(len(rows))], rows, errors or [None] * len(rows))
    return asyncio.run(asyncio.wait_for(call, 60))


def test_answers_are_in_the_order_of_the_rows(worker):
    prompts, completions = answer(worker, ["zebra", "apple", "mouse"])
    assert prompts == ["zebra", "apple", "mouse"]
    single = [answer(worker, [text])[1][0].text for text in prompts]
    assert [c.text for c in completions] == single
    assert worker.answered_rows == 0


def test_a_bad_row_fails_alone(worker):
    prompts, completions = answer(worker, ["good", "bad", None, "given"], [None, None, None, "cannot be read"])
    assert prompts == ["good", "bad", None, None]
    assert [c.error is None for c in completions] == [True, False, False, False]
    assert "null" in completions[2].error
    assert completions[3].error == "cannot be read"
    answer(worker, ["another"])  # the loop has counted the earlier rows, too
    assert (worker.loop.stats.rows, worker.loop.stats.failed_rows) == (5, 3)


def test_an_empty_block_needs_no_engine(worker):
    assert answer(worker, []) == ([], [])


def test_equal_prompts_are_computed_once_unless_they_are_sampled(worker):
    answer(worker, ["same"] * 5)
    assert worker.loop.stats.shared_rows == 4
    sampling = make("generation.temperature=1")
    _, completions = answer(sampling, ["same"] * 5)
    assert len({c.text for c in completions}) > 1
    sampling.loop.close()


def test_the_engines_death_is_raised(worker, monkeypatch):
    def die():
        raise RuntimeError("planted")

    monkeypatch.setattr(worker.loop.engine, "step", die)
    with pytest.raises(EngineDiedError, match="planted"):
        answer(worker, ["a", "b"])


def test_finished_rows_of_a_call_are_counted(tmp_path):
    release = tmp_path / "release"
    worker = make("backend.hold_after=1", f"backend.hold_until={release}", "backend.batch_size=1")

    async def run():
        rows = [{"a": text} for text in "abc"]
        call = asyncio.ensure_future(worker.answer(["0", "1", "2"], rows, [None] * 3))
        while worker.answered_rows == 0:
            await asyncio.sleep(0.01)
        counted = worker.answered_rows
        release.touch()
        await call
        return counted

    assert asyncio.run(asyncio.wait_for(run(), 60)) == 1
    worker.loop.close()
