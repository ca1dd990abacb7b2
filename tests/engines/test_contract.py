"""The contract that every engine keeps, run over all of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hfray.completion import Prompt
from hfray.engines.base import Request as GenRequest
from hfray.engines.capacity import capacity_for_cache, capacity_of, least_capacity_of
from hfray.engines.openvino import PrefixIndex
from hfray.engines.torch.checkpoint import check_fits
from hfray.engines.waiting import ExpectedLength
from hfray.errors import EngineDiedError, RequestError
from hfray.inference.loop import EngineLoop
from hfray.models.folder import weight_bytes
from hfray.params import GenerationParams
from tests.conftest import QUESTIONS, batch_settings

TRANSFORMERS = ["transformers-gpt2", "transformers-bloom", "transformers-llama", "paged-llama"]
ENGINES = ["fake", *TRANSFORMERS, "openvino-gpt2", "vllm-llama"]
PROMPTS = [Prompt(question) for question in QUESTIONS]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def make_engine(name, request, **options):
    if name == "fake":
        from hfray.engines.fake import FakeEngine

        return FakeEngine(context_length=128, tokens_per_step=3, **options)
    backend, model = name.split("-")
    if backend == "transformers":
        from hfray.engines.torch.causal import TransformersEngine

        return TransformersEngine.from_folder(request.getfixturevalue(f"tiny_{model}"), **options)
    if backend == "paged":
        from hfray.engines.torch.paged import PagedEngine

        options = {"kv_cache_gib": 0.01} | options
        return PagedEngine.from_folder(request.getfixturevalue(f"tiny_{model}"), **options)
    if backend == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed: it takes an environment of its own")
        from hfray.engines.vllm import VLLMEngine

        folder = request.getfixturevalue(f"tiny_{model}")
        return VLLMEngine(folder, dtype="float32", enforce_eager=True, **options)
    from hfray.engines.openvino import OpenVINOEngine

    folder = request.getfixturevalue(f"tiny_{model}_ir")
    return OpenVINOEngine(folder, properties=EXACT, kv_cache_gib=1, **options)


@pytest.fixture(params=ENGINES)
def loop(request):
    loop = EngineLoop(make_engine(request.param, request, capacity=4))
    yield loop
    loop.close()


def texts(completions):
    return [completion.text for completion in completions]


def test_more_prompts_than_capacity_come_back_in_order(loop):
    params = GenerationParams(max_new_tokens=12, temperature=0)
    together = loop.generate(PROMPTS, params)
    alone = [loop.generate([prompt], params)[0] for prompt in PROMPTS]
    assert texts(together) == texts(alone)
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
    if "paged" in request.node.callspec.id:
        pytest.skip("transformers' own continuous batching is greedy: test_what_paged_cannot_do_is_said")
    params = GenerationParams(max_new_tokens=12, temperature=1.0, seed=5)
    together = texts(loop.generate(PROMPTS, params))
    alone = [loop.generate([prompt], params)[0].text for prompt in reversed(PROMPTS)][::-1]
    other = texts(loop.generate(PROMPTS, GenerationParams(max_new_tokens=12, temperature=1.0, seed=6)))
    assert together == alone
    assert together != other


def test_a_stop_string_ends_the_row_and_is_not_in_its_text(loop, request):
    greedy = "paged" in request.node.callspec.id  # its text repeats itself, and takes `stop` from where it first stands
    params = GenerationParams(max_new_tokens=24, temperature=0.0 if greedy else 1.0)
    whole = loop.generate(PROMPTS, params)
    prompt, text = next((p, c.text) for p, c in zip(PROMPTS, whole, strict=True) if len(c.text) > 8)
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


def test_a_row_at_the_context_end_does_not_break_the_others(loop):
    """Finished rows stay in a batch for a while; they must not run on past the model's last position."""
    params = GenerationParams(max_new_tokens=200, temperature=0, ignore_eos=True)
    prompts = [Prompt("row " * count) for count in (20, 2, 3, 4, 5, 6)]
    together = loop.generate(prompts, params)
    assert all(c.error is None and c.finish_reason == "length" for c in together)
    assert texts(together) == [loop.generate([prompt], params)[0].text for prompt in prompts]


@pytest.mark.parametrize("text", ["", "😀 emoji 👩‍👩‍👧", "שלום עולם مرحبا", "nul \x00 inside", "lone \ud800 surrogate"])
def test_odd_text_is_answered(loop, text):
    completion = loop.generate([Prompt(text)], GenerationParams(max_new_tokens=4, temperature=0))[0]
    assert completion.error is None
    assert isinstance(completion.text, str)


def test_equal_prompts_are_generated_once(loop):
    params = GenerationParams(max_new_tokens=12, temperature=0)
    alone = loop.generate(PROMPTS, params)
    before = loop.stats.generated_tokens
    for texts_of_a_round in (_shared(loop, params), _shared(loop, params)):  # under way, then done lately
        assert texts_of_a_round == [c.text for c in alone for _ in range(3)]
    assert loop.stats.generated_tokens - before == sum(c.num_generated_tokens for c in alone)
    assert loop.stats.shared_rows == 5 * len(PROMPTS)
    assert loop.stats.saved_tokens == 5 * sum(c.num_generated_tokens for c in alone)
    other = GenerationParams(max_new_tokens=9, temperature=0)
    assert _shared(loop, other)[::3] == texts(loop.generate(PROMPTS, other))  # other settings share nothing


def _shared(loop, params):
    handles = [loop.submit(PROMPTS[i // 3], params, share=True) for i in range(3 * len(PROMPTS))]
    return [handle.result(timeout=60).text for handle in handles]


def test_a_shared_prompt_that_fails_tells_all_who_share_it(loop):
    prompt, params = Prompt("word " * 200), GenerationParams(temperature=0)
    handles = [loop.submit(prompt, params, share=True) for _ in range(3)]
    assert all("128" in handle.result(timeout=60).error for handle in handles)


@pytest.mark.parametrize("name", ["transformers-gpt2", "openvino-gpt2", "vllm-llama", "paged-llama"])
def test_near_the_end_the_longest_go_first(request, name):
    """With max_length, which counts the prompt, the shortest prompts have the longest completions."""
    engine = make_engine(name, request, capacity=1)
    engine.ending = True
    params = GenerationParams(max_length=100, temperature=0, ignore_eos=True)
    finished = []
    for number, length in enumerate([90, 5, 60, 30]):
        engine.add(GenRequest(id=number, prompt_ids=[7] * length, max_new_tokens=100 - length, params=params))
    while engine.num_unfinished:
        finished += [output.request_id for output in engine.step() if output.finish_reason]
    assert finished == [1, 3, 2, 0]
    engine.close()


def test_expected_lengths_follow_the_prompts():
    expected, params = ExpectedLength(), GenerationParams()
    long, short = (GenRequest(id=i, prompt_ids=[1] * n, max_new_tokens=90, params=params) for i, n in ((0, 60), (1, 4)))
    assert expected.of(long) == expected.of(short) == 90  # nothing is known yet
    for prompt_tokens in range(40):
        expected.observe(prompt_tokens, 3 * prompt_tokens + 2)
    assert expected.of(short) == pytest.approx(14)
    assert expected.of(long) == 90  # never more than is allowed


def test_prefixes_are_found_in_whole_blocks_and_the_oldest_forgotten():
    index = PrefixIndex(tokens=8 * 32)
    head = list(range(64))
    assert index.add([*head, 1, 2, 3]) == 0
    assert index.add([*head, 4, 5, 6]) == 64
    assert index.add([9, *head]) == 0  # a beginning, not a part
    assert index.add(head) == 63  # the last token is computed in any case
    index.add(list(range(1000, 1000 + 8 * 32)))
    assert index.add([*head, 1, 2, 3]) == 0


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


def test_what_paged_cannot_do_is_said(request):
    loop = EngineLoop(make_engine("paged-llama", request))
    for name, value in [("temperature", 0.5), ("repetition_penalty", 1.2), ("min_new_tokens", 3), ("logprobs", 1)]:
        completion = loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, **{name: value}))[0]
        assert f"generation.{name}={value}" in completion.error
        assert "backend.paged=false" in completion.error
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, repetition_penalty=1))[0].error is None
    loop.close()
    with pytest.raises(ValueError, match=r"backend.paged=true: BloomForCausalLM"):
        make_engine("paged-bloom", request)


def test_paged_starts_no_more_than_its_cache_holds(request):
    """Each of the rows may need one of two blocks."""
    engine, most = make_engine("paged-llama", request, capacity=8, kv_cache_gib=2**-12), 0
    params = GenerationParams(max_new_tokens=12, temperature=0)
    step = engine.step

    def counted():
        nonlocal most
        outputs = step()
        most = max(most, engine.num_running)
        return outputs

    engine.step = counted
    loop = EngineLoop(engine)
    together = texts(loop.generate(PROMPTS, params))
    assert most == 2
    assert together == [loop.generate([prompt], params)[0].text for prompt in PROMPTS]
    loop.close()


def test_a_row_larger_than_the_paged_cache_fails_alone(request):
    engine = make_engine("paged-llama", request, kv_cache_gib=2**-12)  # two blocks, of 256 tokens each
    engine.context_length = None
    loop = EngineLoop(engine)
    params = GenerationParams(max_new_tokens=4, temperature=0)
    good, bad = loop.generate([PROMPTS[0], Prompt("word " * 600)], params)
    assert good.error is None
    assert "backend.kv_cache_gib" in bad.error
    assert "511" in bad.error
    loop.close()


def test_the_end_of_the_paged_managers_thread_is_the_engines(request):
    loop, params = EngineLoop(make_engine("paged-llama", request)), GenerationParams(max_new_tokens=4, temperature=0)
    assert loop.generate(PROMPTS[:1], params)[0].error is None
    loop.engine._manager.stop(block=True)
    with pytest.raises(EngineDiedError, match="has ended"):
        loop.generate(PROMPTS[:1], params)


def test_what_vllm_refuses_is_the_rows_error_and_prompts_beyond_a_step_wait(request):
    loop = EngineLoop(make_engine("vllm-llama", request, capacity=16, max_num_batched_tokens=128))
    prompts = [Prompt(f"row number {number} " * 3) for number in range(12)]  # more tokens than one step takes
    sampled = loop.generate(prompts, GenerationParams(max_new_tokens=8, temperature=1.0))
    assert sum(c.num_prompt_tokens for c in sampled) > 128
    assert all(c.error is None for c in sampled)
    hot = loop.generate(PROMPTS[:2], GenerationParams(max_new_tokens=8, temperature=50.0))
    assert all("vLLM refuses it" in c.error and "temperature" in c.error for c in hot)
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=8, temperature=0))[0].error is None
    loop.close()


@pytest.mark.parametrize("model", ["gpt2", "bloom", "llama"])
def test_transformers_gives_the_tokens_of_generate(request, model):
    engine = make_engine(f"transformers-{model}", request, capacity=3)
    loop = EngineLoop(engine)
    completions = loop.generate(PROMPTS, GenerationParams(max_new_tokens=16, temperature=0))
    assert [c.token_ids for c in completions] == [_generate(engine, p.text, 16) for p in PROMPTS]
    loop.close()


@pytest.mark.parametrize("name", ["openvino-gpt2", "vllm-llama", "paged-llama", "paged-gpt2"])
def test_other_engines_give_the_tokens_of_transformers(request, name):
    reference = make_engine(f"transformers-{name.split('-')[1]}", request)
    loop = EngineLoop(make_engine(name, request, capacity=3))
    completions = loop.generate(PROMPTS, GenerationParams(max_new_tokens=16, temperature=0))
    assert [c.token_ids for c in completions] == [_generate(reference, p.text, 16) for p in PROMPTS]
    loop.close()


def _generate(engine, text, count):
    ids = torch.tensor([engine.tokenizer.encode(text)])
    output = engine.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    tokens = output[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(0)] if 0 in tokens else tokens


@pytest.mark.parametrize("engine", ["transformers-gpt2", "transformers-bloom"])
def test_out_of_memory_halves_the_batch_and_loses_nothing(request, engine, monkeypatch):
    """The device is made to run out of memory whenever more than two rows are in a forward."""
    made = make_engine(engine, request, capacity=8)
    forward = made._forward

    def scarce(ids, batch):
        if ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return forward(ids, batch)

    monkeypatch.setattr(made, "_forward", scarce)
    loop = EngineLoop(made)
    params = GenerationParams(max_new_tokens=12, temperature=0)
    completions = loop.generate(PROMPTS, params)
    assert [c.token_ids for c in completions] == [_generate(made, p.text, 12) for p in PROMPTS]
    assert made.capacity == 2
    loop.close()


def test_out_of_memory_while_finished_rows_are_dropped_loses_nothing(request, monkeypatch):
    made = make_engine("transformers-gpt2", request, capacity=4)
    thin_out, failed = made._thin_out, []

    def scarce():
        if not failed and None in made._rows and made._waiting:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        thin_out()

    monkeypatch.setattr(made, "_thin_out", scarce)
    loop, params = EngineLoop(made), GenerationParams(max_new_tokens=12, temperature=0)
    assert [c.token_ids for c in loop.generate(PROMPTS, params)] == [_generate(made, p.text, 12) for p in PROMPTS]
    assert failed
    loop.close()


@pytest.mark.parametrize("values", [{"top_p": 0, "temperature": 1}, {"no_repeat_ngram_size": 2, "temperature": 0}])
def test_what_openvino_refuses_is_the_rows_error(request, values):
    loop = EngineLoop(make_engine("openvino-gpt2", request))
    assert next(iter(values)) in loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, **values))[0].error
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, temperature=0))[0].error is None
    loop.close()


def test_a_whole_number_is_a_penalty_too(request):
    loop = EngineLoop(make_engine("transformers-gpt2", request))
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, repetition_penalty=2))[0].error is None
    loop.close()


def test_a_prompt_for_an_engine_that_was_closed_is_told(request):
    loop = EngineLoop(make_engine("fake", request))
    loop.close()
    with pytest.raises(EngineDiedError, match="closed"):
        loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4))


def test_a_model_too_large_for_its_gpu_is_told_by_its_size(tiny_gpt2):
    weights = weight_bytes(tiny_gpt2, "float32")
    assert weights == pytest.approx(2 * weight_bytes(tiny_gpt2, "bfloat16"), abs=1)
    check_fits(weights, 2 * weights, "model.source=here:")
    with pytest.raises(ValueError, match=r"model.source=here: its weights take 20.0 GiB.*8.0 GiB free.*workers.gpus=3"):
        check_fits(20 << 30, 8 << 30, "model.source=here:")


def test_engines_side_by_side_do_not_pin_their_threads_to_the_same_cores(tiny_gpt2_ir):
    """OpenVINO's default does: every process takes the first cores of the machine."""
    code = (
        "import os, pathlib; from hfray.engines.load import load_engine; from hfray.inference.loop import *;"
        "from hfray.params import GenerationParams; from tests.conftest import batch_settings;"
        f"folder = pathlib.Path({str(tiny_gpt2_ir)!r}); settings = batch_settings('input.path=-', 'output.path=-');"
        "EngineLoop(load_engine(settings, folder=folder, threads=1)).generate([Prompt('Hello')], GenerationParams());"
        "print({len(os.sched_getaffinity(int(thread))) for thread in os.listdir('/proc/self/task')}, flush=True);"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == str({len(os.sched_getaffinity(0))})


def test_the_first_prompts_may_come_from_several_threads_at_once(tiny_gpt2_ir):
    """OpenVINO's Python deadlocks where two threads are the first to look into a tensor."""
    code = (
        "import pathlib, sys, threading; from hfray.engines.openvino import OpenVINOTokenizer;"
        "sys.setswitchinterval(1e-6);"
        f"tokenizer, start = OpenVINOTokenizer(pathlib.Path({str(tiny_gpt2_ir)!r})), threading.Barrier(8);"
        "first = lambda: (start.wait(), tokenizer.encode('Hello'));"
        "threads = [threading.Thread(target=first) for _ in range(8)];"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    )
    for _ in range(3):  # without the cure, more than every second try hung
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("tokens", "rows"), [(10_000, 128), (64_000, 200), (1 << 20, 256)])
def test_openvino_runs_as_many_rows_as_its_cache_has_room_for(tokens, rows):
    assert capacity_for_cache(tokens) == rows


@pytest.mark.parametrize(
    ("backend", "least"), [([], 128), (["backend.batch_size=7"], 7), (["conf=fake"], 64), (["conf=smollm2_cpu"], 32)]
)
def test_replicas_are_added_by_what_an_engine_surely_takes(backend, least):
    """With the most that it may take, an engine of a small KV cache refused requests and none was added."""
    settings = batch_settings(*backend, "input.path=-", "output.path=-")
    assert least_capacity_of(settings) == least <= capacity_of(settings)


def test_openvino_needs_no_torch_and_no_transformers(tiny_gpt2_ir):
    code = (
        "import sys, pathlib; from hfray.engines.openvino import OpenVINOEngine; from hfray.batch.worker import Worker;"
        f"OpenVINOEngine(pathlib.Path({str(tiny_gpt2_ir)!r}), kv_cache_gib=1);"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_engines_know_neither_ray_nor_hydra_nor_langchain():
    code = (
        "import sys, hfray.engines.fake, hfray.inference.loop, hfray.engines.torch.causal, hfray.engines.openvino;"
        "print([m for m in ('ray', 'hydra', 'langchain_core') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_generation_params_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"generation\.temprature=1.*temperature"):
        GenerationParams.from_mapping({"temprature": 1})
    with pytest.raises(ValueError, match=r"generation\.top_p=3"):
        GenerationParams.from_mapping({"top_p": 3})
    assert GenerationParams.from_mapping({"stop": "\n"}).stop_strings == ("\n",)
    assert not GenerationParams(temperature=0, do_sample=True).sampling
    assert GenerationParams(temperature=0.7).sampling
    with pytest.raises(RequestError, match=r"200 tokens.*128"):
        GenerationParams().max_tokens_for(200, 128)
