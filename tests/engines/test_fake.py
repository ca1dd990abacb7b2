"""The engine without a model: deterministic text, and faults on demand."""

from __future__ import annotations

import os

import pytest

from hfray.engines.base import Request, RequestError
from hfray.engines.fake import FakeEngine, FakeTokenizer
from hfray.params import GenerationParams


def add(engine, number, text="a prompt", *, seed=0, max_new_tokens=1000, **params):
    ids = engine.tokenizer.encode(text)
    values = GenerationParams(**params)
    engine.add(Request(id=number, prompt_ids=ids, max_new_tokens=max_new_tokens, params=values, seed=seed))


def finish(engine):
    """Run the engine to its end: the tokens and the last output of each request."""
    tokens, last = {}, {}
    while engine.num_unfinished:
        for output in engine.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
            last[output.request_id] = output
    return tokens, last


def test_a_token_is_a_byte():
    tokenizer = FakeTokenizer()
    assert tokenizer.encode("né") == [110, 195, 169]
    assert tokenizer.decode([110, 195, 169]) == "né"
    assert tokenizer.chat([{"role": "user", "content": "Hi"}]) == "user: Hi\nassistant: "


def test_the_text_depends_on_prompt_and_seed_only():
    engine = FakeEngine(tokens_per_step=3, capacity=2)
    add(engine, 0)
    add(engine, 1, seed=1)
    add(engine, 2, "another prompt")
    add(engine, 3)
    tokens, last = finish(engine)
    assert tokens[0] == tokens[3]
    assert tokens[0] not in (tokens[1], tokens[2])
    assert {output.finish_reason for output in last.values()} == {"stop"}


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_maximum_length_ends_the_text(ignore_eos):
    engine = FakeEngine()
    add(engine, 0, max_new_tokens=5, ignore_eos=ignore_eos)
    tokens, last = finish(engine)
    assert len(tokens[0]) == 5
    assert last[0].finish_reason == "length"


def test_no_more_than_the_capacity_run_and_a_cancelled_request_gets_no_output():
    engine = FakeEngine(capacity=2, tokens_per_step=1)
    for number in range(4):
        add(engine, number)
    assert {output.request_id for output in engine.step()} == {0, 1}
    assert (engine.num_running, engine.num_unfinished) == (2, 4)
    engine.cancel(0)
    engine.cancel(3)
    engine.cancel(77)
    assert engine.num_unfinished == 2
    assert set(finish(engine)[0]) == {1, 2}


def test_a_row_fails_on_demand_and_the_others_do_not():
    engine = FakeEngine(fail_on="bad")
    add(engine, 0, "a bad prompt")
    add(engine, 1)
    _, last = finish(engine)
    assert "told to fail" in last[0].error
    assert last[1].error is None


def test_the_log_has_a_line_for_each_finished_row(tmp_path):
    log = tmp_path / "log"
    engine = FakeEngine(answer_log=str(log))
    for number in range(3):
        add(engine, number)
    finish(engine)
    assert log.read_text().split() == [str(os.getpid())] * 3


def test_the_engine_waits_for_a_file_on_demand(tmp_path):
    engine = FakeEngine(capacity=1, hold_after=1, hold_until=str(tmp_path / "go"))
    add(engine, 0)
    add(engine, 1)
    assert [output.request_id for output in engine.step()] == [0]
    assert engine.step() == []
    (tmp_path / "go").touch()
    assert [output.request_id for output in engine.step()] == [1]


def test_log_probabilities_are_refused():
    engine = FakeEngine()
    with pytest.raises(RequestError, match=r"generation\.logprobs=0: backend=fake"):
        add(engine, 0, logprobs=0)
    assert engine.num_unfinished == 0
