"""The contract that every engine keeps. The loops are shared by all tests of this file."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from hfray.completion import Prompt
from hfray.engines.base import Request
from hfray.engines.precision import cpu_computes_bf16
from hfray.inference.detokenizer import UNFINISHED
from hfray.inference.loop import EngineLoop
from hfray.inference.validator import validator_of
from hfray.params import GenerationParams
from hfray.response import ResponseFormat
from tests.engines.making import ENGINES, PROMPTS, assert_same_completions, make_engine, model_folder
from tests.schemas import REVIEW, TREE
from tests.ties import log_probabilities

WITHOUT_LOGPROBS = ("fake", "paged-llama")


@pytest.fixture(scope="module", params=ENGINES)
def loop(request):
    loop = EngineLoop(make_engine(request.param, request, capacity=4))
    yield loop
    loop.close()


@pytest.fixture
def folder(loop, request):
    return model_folder(request.node.callspec.params["loop"], request)


def texts(completions):
    return [completion.text for completion in completions]


def test_more_prompts_than_capacity_come_back_in_order(loop, folder):
    params = GenerationParams(max_new_tokens=12, temperature=0)
    together = loop.generate(PROMPTS, params)
    alone = [loop.generate([prompt], params)[0] for prompt in PROMPTS]
    assert_same_completions(folder, loop.engine.tokenizer, PROMPTS, together, alone)
    assert all(c.error is None and c.num_prompt_tokens > 0 for c in together)
    assert all(c.finish_reason == "length" for c in together if c.num_generated_tokens == 12)
    assert all(c.finish_reason == "stop" for c in together if c.num_generated_tokens < 12)


def test_max_length_counts_the_prompt(loop):
    length = loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=1, temperature=0))[0].num_prompt_tokens
    params = GenerationParams(max_length=length + 5, temperature=0, ignore_eos=True)
    assert loop.generate(PROMPTS[:1], params)[0].num_generated_tokens == 5
    too_short = GenerationParams(max_length=length, temperature=0)
    error = loop.generate(PROMPTS[:1], too_short)[0].error
    assert str(length) in error
    assert "max_length" in error


def test_a_sampled_row_depends_on_its_own_seed_only(loop, request):
    """A draw may fall on the border between two tokens, where rounding decides: one row may differ."""
    if "paged" in request.node.callspec.id:
        pytest.skip("transformers' own continuous batching is greedy: tests/engines/torch/test_paged.py")
    params = GenerationParams(max_new_tokens=12, temperature=1.0, seed=5)
    together = texts(loop.generate(PROMPTS, params))
    alone = [loop.generate([prompt], params)[0].text for prompt in reversed(PROMPTS)][::-1]
    other = texts(loop.generate(PROMPTS, GenerationParams(max_new_tokens=12, temperature=1.0, seed=6)))
    assert num_equal(together, alone) >= len(PROMPTS) - 1
    assert num_equal(together, other) < len(PROMPTS) - 1


def num_equal(first, second):
    return sum(one == two for one, two in zip(first, second, strict=True))


def test_a_stop_string_ends_the_row_and_is_not_in_its_text(loop, request):
    greedy = "paged" in request.node.callspec.id  # it cannot sample
    params = GenerationParams(max_new_tokens=24, temperature=0.0 if greedy else 1.0)
    whole = loop.generate(PROMPTS, params)
    prompt = next(p for p, c in zip(PROMPTS, whole, strict=True) if len(c.text) > 8)
    text = loop.generate([prompt], params)[0].text  # alone, as with the stop string: the same rounding
    stop = text[4:7]
    completion = loop.generate([prompt], params.with_stop([stop]))[0]
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason == "stop"


def test_streamed_pieces_make_the_whole_text(loop):
    params = GenerationParams(max_new_tokens=20, temperature=0)
    whole = loop.generate(PROMPTS[:1], params)[0].text
    handle = loop.submit(PROMPTS[0], params, stream=True)
    pieces = list(handle)
    assert "".join(piece.text for piece in pieces) == whole
    assert pieces[-1].completion.text == whole
    assert handle.submitted <= handle.first_token <= handle.last_token
    assert handle.num_tokens == handle.result().num_generated_tokens


def test_a_prompt_too_long_fails_alone_and_says_both_lengths(loop):
    prompts = [PROMPTS[0], Prompt("word " * 20_000), PROMPTS[1]]
    good, bad, more = loop.generate(prompts, GenerationParams(max_new_tokens=4, temperature=0))
    assert good.error is None
    assert more.error is None
    assert bad.text is None
    assert bad.finish_reason == "error"
    assert "128" in bad.error
    assert "tokens" in bad.error


def test_a_row_at_the_context_end_does_not_break_the_others(loop, folder):
    """Finished rows stay in a batch for a while; they must not run past the model's last position."""
    params = GenerationParams(max_new_tokens=200, temperature=0, ignore_eos=True)
    prompts = [Prompt("row " * count) for count in (20, 2, 3, 4, 5, 6)]
    together = loop.generate(prompts, params)
    assert all(c.error is None and c.finish_reason == "length" for c in together)
    assert all(c.num_prompt_tokens + c.num_generated_tokens == loop.engine.context_length for c in together)
    some = [0, 1]
    alone = [loop.generate([prompts[i]], params)[0] for i in some]
    chosen = [together[i] for i in some]
    assert_same_completions(folder, loop.engine.tokenizer, [prompts[i] for i in some], chosen, alone)


@pytest.mark.parametrize("text", ["", "😀 emoji 👩‍👩‍👧", "שלום עולם مرحبا", "nul \x00 inside", "lone \ud800 surrogate"])
def test_odd_text_is_answered(loop, text):
    completion = loop.generate([Prompt(text)], GenerationParams(max_new_tokens=4, temperature=0))[0]
    assert completion.error is None
    assert isinstance(completion.text, str)


def test_equal_prompts_are_generated_once(loop):
    params, stats = GenerationParams(max_new_tokens=11, temperature=0), loop.stats
    generated, shared, saved = stats.generated_tokens, stats.shared_rows, stats.saved_tokens
    first = _shared(loop, params)
    again = _shared(loop, params)  # from the stored completions
    assert texts(again) == texts(first) == [text for text in texts(first)[::3] for _ in range(3)]
    tokens = sum(c.num_generated_tokens for c in first[::3])
    assert loop.stats.generated_tokens - generated == tokens
    assert loop.stats.shared_rows - shared == 5 * len(PROMPTS)
    assert loop.stats.saved_tokens - saved == 5 * tokens
    _shared(loop, GenerationParams(max_new_tokens=9, temperature=0))  # other parameters share nothing
    assert loop.stats.generated_tokens - generated > tokens


def _shared(loop, params):
    handles = [loop.submit(PROMPTS[i // 3], params, share=True) for i in range(3 * len(PROMPTS))]
    return [handle.result(timeout=60) for handle in handles]


def test_a_shared_prompt_that_fails_tells_all_who_share_it(loop):
    prompt, params = Prompt("word " * 200), GenerationParams(temperature=0)
    handles = [loop.submit(prompt, params, share=True) for _ in range(3)]
    assert all("128" in handle.result(timeout=60).error for handle in handles)


def test_cancelling_frees_the_engine(loop):
    params = GenerationParams(max_new_tokens=100, temperature=0, ignore_eos=True)
    first, *others = [loop.submit(prompt, params) for prompt in PROMPTS]
    for handle in others:
        handle.cancel()
    completion = loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=2, temperature=0))[0]
    assert completion.error is None
    assert first.result(timeout=60).num_generated_tokens == 100
    assert all(handle.cancelled() for handle in others)
    assert loop.engine.num_unfinished == 0


def test_log_probabilities_come_only_when_asked_for(loop):
    """GenAI reports a zero for every token of a request that did not ask."""
    completion = loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=6, temperature=0))[0]
    assert completion.error is None
    assert completion.logprobs == []


@pytest.mark.parametrize("others", [{"temperature": 0}, {"temperature": 1.5, "top_k": 20, "repetition_penalty": 1.3}])
def test_log_probabilities_are_those_of_the_model(loop, folder, request, others):
    """The model's own, before temperature and penalties; an engine that cannot give them refuses by name."""
    params = GenerationParams(max_new_tokens=6, logprobs=0, **others)
    completions = loop.generate(PROMPTS, params)
    if request.node.callspec.params["loop"] in WITHOUT_LOGPROBS:
        assert all(c.text is None and names_a_setting(c.error, params) for c in completions)
        return
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.error is None
        expected = log_probabilities(folder, loop.engine.tokenizer.encode(prompt.text), completion.token_ids)
        chosen = [float(row[token]) for row, token in zip(expected, completion.token_ids, strict=True)]
        assert [own for own, _ in completion.logprobs] == pytest.approx(chosen, abs=0.01)
        assert all(likeliest == [] for _, likeliest in completion.logprobs)


def names_a_setting(error, params):
    """Whether the error names one of the settings; the paged engine refuses sampling before log-probabilities."""
    return any(f"generation.{name}=" in error for name in params.to_mapping())


def test_the_likeliest_tokens_are_those_of_the_model_or_refused(loop, folder, request):
    completion = loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=6, temperature=0, logprobs=3))[0]
    if request.node.callspec.params["loop"] in WITHOUT_LOGPROBS or not loop.engine.top_logprobs:
        assert completion.text is None
        assert "generation.logprobs=3" in completion.error
        return
    expected = log_probabilities(folder, loop.engine.tokenizer.encode(PROMPTS[0].text), completion.token_ids)
    for (own, likeliest), row in zip(completion.logprobs, expected, strict=True):
        assert [value for _, value in likeliest] == pytest.approx(row.topk(3).values.tolist(), abs=0.01)
        assert [value for _, value in likeliest] == pytest.approx([float(row[t]) for t, _ in likeliest], abs=0.01)
        assert own == pytest.approx(likeliest[0][1], abs=0.01)


# --- answers that must have a form -----------------------------------------------------------------------------

FORMS = [
    ResponseFormat.of_schema(REVIEW),
    ResponseFormat.of_schema(TREE),
    ResponseFormat("regex", "[0-9]{3}-[a-f]{2}"),
    ResponseFormat.of_choices(["yes", "no", "yes and no"]),
]


@pytest.fixture
def held_to_forms(loop):
    """The loop of an engine that holds answers to forms; the others refuse by name."""
    params = GenerationParams(max_new_tokens=4, temperature=0, response=FORMS[2])
    error = loop.generate(PROMPTS[:1], params)[0].error
    if error is not None and error.startswith("response: this engine cannot"):
        pytest.skip("this engine refuses forms by name")
    return loop


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_every_answer_that_was_not_cut_has_its_form(held_to_forms, form, temperature):
    params = GenerationParams(max_new_tokens=90, temperature=temperature, response=form, seed=3)
    completions = held_to_forms.generate(PROMPTS, params)
    assert all(c.error is None or "was cut at" in c.error or is_broken(c.text) for c in completions)
    finished = [c for c in completions if c.error is None]
    assert finished or form.kind == "schema"  # a random model may write texts without an end
    assert all(validator_of(form).check(c.text, c.finish_reason)[1] is None for c in finished)
    assert all(c.finish_reason in ("stop", "length") for c in finished)


def is_broken(text):
    """Whether a random model wrote bytes that are no characters, each of which counts against a `maxLength`."""
    return UNFINISHED in text


def test_rows_with_and_without_a_form_share_a_batch(held_to_forms, folder):
    """Each row has its own form, and the others' forms do not change its text."""
    loop = held_to_forms
    several = [GenerationParams(max_new_tokens=24, temperature=0, response=form) for form in (*FORMS, None)]
    pairs = [(prompt, several[i % len(several)]) for i, prompt in enumerate(PROMPTS)]
    handles = [loop.submit(prompt, params) for prompt, params in pairs]
    together = [handle.result(timeout=60) for handle in handles]
    alone = [loop.generate([prompt], params)[0] for prompt, params in pairs]
    for (prompt, params), one, other in zip(pairs, together, alone, strict=True):
        if params.response is None:
            assert_same_completions(folder, loop.engine.tokenizer, [prompt], [one], [other])
    guided = [(a.text, b.text) for a, b, (_, p) in zip(together, alone, pairs, strict=True) if p.response]
    assert sum(one == other for one, other in guided) >= len(guided) - 1  # one near tie may fall either way


def test_a_form_ends_its_answer_despite_ignore_eos(held_to_forms):
    params = GenerationParams(max_new_tokens=60, temperature=0, ignore_eos=True, response=FORMS[2])
    assert all(c.error is None and len(c.text) == 6 for c in held_to_forms.generate(PROMPTS[:3], params))


def test_a_form_may_begin_after_a_thought(held_to_forms):
    """A random model does not end its thought, so the answer never begins; it is cut."""
    form = dataclasses.replace(FORMS[3], after_thought=True)
    params = GenerationParams(max_new_tokens=30, temperature=0, response=form)
    for completion in held_to_forms.generate(PROMPTS[:2], params):
        assert completion.text in FORMS[3].choices or "was cut at" in completion.error


def test_cancelling_a_row_with_a_form_frees_the_engine(held_to_forms):
    params = GenerationParams(max_new_tokens=90, temperature=0, response=FORMS[0])
    for handle in [held_to_forms.submit(prompt, params) for prompt in PROMPTS]:
        handle.cancel()
    params = GenerationParams(max_new_tokens=10, temperature=0, response=FORMS[2])
    assert held_to_forms.generate(PROMPTS[:1], params)[0].error is None
    assert held_to_forms.engine.num_unfinished == 0


@pytest.mark.parametrize("form", [ResponseFormat("regex", "(?=a)b"), ResponseFormat.of_schema({"type": "objekt"})])
def test_a_form_that_cannot_be_compiled_fails_its_row_alone(held_to_forms, form):
    bad = GenerationParams(max_new_tokens=8, temperature=0, response=form)
    handles = [held_to_forms.submit(PROMPTS[0], bad), held_to_forms.submit(PROMPTS[1], GenerationParams())]
    first, second = [handle.result(timeout=60) for handle in handles]
    assert first.error is not None
    assert second.error is None


def test_exact_is_fp32(loop):
    assert loop.engine.precision == "fp32"


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "fake"])
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_an_engine_tells_what_it_computes_in(request, name, precision):
    """Each engine answers, and its numbers have the error of the format that it tells."""
    bf16 = precision == "bf16" or cpu_computes_bf16()
    if name.startswith("openvino") and not cpu_computes_bf16():
        bf16 = False  # load_engine refuses the setting then
    loop = EngineLoop(make_engine(name, request, precision=precision, capacity=4))
    assert loop.engine.precision == ("bf16" if bf16 else "fp32")
    logprobs = 0 if name.split("-")[0] not in WITHOUT_LOGPROBS and "paged" not in name else None
    completions = loop.generate(PROMPTS, GenerationParams(max_new_tokens=4, temperature=0, logprobs=logprobs))
    loop.close()
    assert all(completion.error is None for completion in completions)
    if logprobs is None:
        return
    folder, errors = model_folder(name, request), []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        rows = log_probabilities(folder, loop.engine.tokenizer.encode(prompt.text), completion.token_ids)
        pairs = zip(completion.logprobs, completion.token_ids, rows, strict=True)
        errors += [abs(own - float(row[token])) for (own, _), token, row in pairs]
    assert (max(errors) > 1e-3) == bf16


@pytest.mark.parametrize("name", ["transformers-gpt2", "openvino-gpt2", "vllm-llama", "paged-llama"])
def test_near_the_end_the_longest_go_first(request, name):
    """With max_length, which counts the prompt, the shortest prompts have the longest completions."""
    engine = make_engine(name, request, capacity=1)
    engine.ending = True
    params = GenerationParams(max_length=100, temperature=0, ignore_eos=True)
    finished = []
    for number, length in enumerate([90, 5, 60, 30]):
        engine.add(Request(id=number, prompt_ids=[7] * length, max_new_tokens=100 - length, params=params))
    while engine.num_unfinished:
        finished += [output.request_id for output in engine.step() if output.finish_reason]
    assert finished == [1, 3, 2, 0]
    engine.close()


@pytest.mark.model  # imports all libraries once more
def test_engines_run_without_ray_hydra_langchain_and_pydantic(tiny_gpt2, tiny_gpt2_ir):
    """The modules are blocked, as if they were not installed."""
    code = f"""
import sys
for name in ("ray", "hydra", "omegaconf", "langchain_core", "pydantic"):
    sys.modules[name] = None
from pathlib import Path
from hfray.completion import Prompt
from hfray.engines.fake import FakeEngine
from hfray.engines.openvino import OpenVINOEngine
from hfray.engines.torch.causal import TransformersEngine
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
openvino = OpenVINOEngine(Path({str(tiny_gpt2_ir)!r}), kv_cache_gib=1)
for engine in (FakeEngine(), TransformersEngine.from_folder(Path({str(tiny_gpt2)!r})), openvino):
    loop = EngineLoop(engine)
    (completion,) = loop.generate([Prompt("Hello")], GenerationParams(max_new_tokens=2, temperature=0))
    assert completion.error is None
    loop.close()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.strip() == "done", (done.returncode, done.stderr)
