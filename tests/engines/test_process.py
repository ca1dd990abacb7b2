"""An engine in a child process."""

from __future__ import annotations

import pytest

from hfray.engines.base import Request, RequestError
from hfray.engines.fake import FakeEngine, FakeTokenizer
from hfray.engines.process import ProcessEngine, load_apart
from hfray.errors import EngineDiedError
from hfray.params import GenerationParams
from hfray.response import ResponseFormat
from tests.conftest import batch_settings


def settings_of(*overrides):
    return batch_settings("input.path=-", "output.path=-", "conf=fake", *overrides)


@pytest.fixture
def start(tmp_path):
    """Start engines; their child processes end with the test."""
    engines = []

    def start(*overrides):
        engines.append(ProcessEngine(settings_of(*overrides), tmp_path, None, FakeTokenizer()))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def add(engine, number, text="a prompt", **params):
    ids = engine.tokenizer.encode(text)
    engine.add(Request(id=number, prompt_ids=ids, max_new_tokens=50, params=GenerationParams(**params)))


def finish(engine):
    outputs = []
    while engine.num_unfinished:
        outputs += engine.step()
    return outputs


def test_the_child_gives_the_same_outputs_and_has_the_same_attributes(start):
    apart, here = start("backend.batch_size=3", "backend.context_length=999"), FakeEngine(capacity=3)
    assert (apart.capacity, apart.context_length, apart.top_logprobs) == (3, 999, True)
    assert apart.precision == here.precision == "fp32"
    for engine in (apart, here):
        for number in range(5):
            add(engine, number, f"prompt {number}")
    assert apart.num_unfinished == 5
    assert finish(apart) == finish(here)
    # A refused request gets its error as an output, and the others run.
    add(apart, 5, logprobs=0)
    add(apart, 6)
    refused, answered = finish(apart)
    assert "generation.logprobs=0" in refused.error
    assert answered.finish_reason == "stop"
    # A cancelled request gets no output.
    add(apart, 7)
    add(apart, 8)
    apart.cancel(7)
    assert [output.request_id for output in finish(apart)] == [8]
    apart.close()
    assert apart._child.returncode == 0


def test_a_child_that_dies_and_one_that_is_killed_end_the_engine(start):
    dying, hanging = start("backend.die_on=die"), start("backend.hang_on=hang")
    add(dying, 0, "die")
    with pytest.raises(EngineDiedError, match=r"the engine's process ended \(exit code"):
        dying.step()
    add(hanging, 0, "hang")
    hanging.kill()
    with pytest.raises(EngineDiedError):
        hanging.step()


def test_an_engine_that_cannot_be_loaded_reports_the_childs_error(start):
    with pytest.raises(ValueError, match="the folder has no tokenizer"):  # the fixture's folder is empty
        start("conf=smollm2_openvino")


def test_only_openvinos_text_generation_needs_a_child():
    engine = load_apart(settings_of())
    assert isinstance(engine, FakeEngine)


def test_a_form_reaches_the_child_and_is_checked_here(start):
    form, engine = ResponseFormat.of_choices(["red", "blue"]), start()
    engine.prepare(form)
    add(engine, 0, response=form)
    (output,) = finish(engine)
    assert engine.tokenizer.decode(output.token_ids) in ("red", "blue")
    with pytest.raises(RequestError, match="the regex cannot be compiled"):  # GenAI's pipeline would break
        engine.prepare(ResponseFormat("regex", r"a\b"))
