"""The transformers engine: batches, and what happens when memory runs out."""

from __future__ import annotations

import weakref

import pytest
import torch

from hfray.engines.base import Request
from hfray.engines.torch import causal
from hfray.engines.torch.admission import CALM_STEPS, LARGE_PREFILL
from hfray.engines.torch.batch import RunningBatch
from hfray.engines.torch.causal import TransformersEngine
from hfray.engines.torch.kvcache import BatchCache
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.engines.making import (
    PROMPTS,
    assert_same_completions,
    assert_tokens_of_generate,
    make_engine,
    model_folder,
)


@pytest.mark.parametrize("ending", [False, True])
def test_short_prompts_are_not_padded_to_the_longest(tiny_llama, ending):
    engine = TransformersEngine.from_folder(tiny_llama, capacity=64)
    engine.ending = ending
    lengths = ([100] + [5] * 5) * 8
    assert LARGE_PREFILL < 100 * 8
    params = GenerationParams(max_new_tokens=2, temperature=0, ignore_eos=True)
    for i, length in enumerate(lengths):
        engine.add(Request(id=i, prompt_ids=[1 + i] * length, max_new_tokens=2, params=params))
    engine.step()
    assert 8 <= engine.num_running < 10
    engine.step()
    assert engine.num_running >= 38  # the rest, in one


def reference(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("model", ["gpt2", "bloom", "llama"])
def test_transformers_gives_the_tokens_of_generate(request, model):
    engine = make_engine(f"transformers-{model}", request, capacity=3)
    loop, folder = EngineLoop(engine), request.getfixturevalue(f"tiny_{model}")
    completions = loop.generate(PROMPTS, GenerationParams(max_new_tokens=16, temperature=0))
    assert_tokens_of_generate(folder, engine, PROMPTS, completions, 16)
    loop.close()


@pytest.mark.parametrize("engine", ["transformers-gpt2", "transformers-bloom"])
def test_out_of_memory_halves_the_batch_and_loses_nothing(request, engine, monkeypatch):
    """The device is made to run out of memory whenever more than two rows are in a forward."""
    made = make_engine(engine, request, capacity=8)
    forward = made._forward

    def scarce(ids, *args, **kwargs):
        if ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return forward(ids, *args, **kwargs)

    monkeypatch.setattr(made, "_forward", scarce)
    loop = EngineLoop(made)
    params = GenerationParams(max_new_tokens=12, temperature=0)
    completions = loop.generate(PROMPTS, params)
    folder = model_folder(engine, request)
    assert_tokens_of_generate(folder, made, PROMPTS, completions, 12, reference(folder))
    assert made.capacity == 2
    loop.close()


def plant_once(monkeypatch, owner, name, when=lambda *args: True):
    """Make a function of the engine run out of memory once."""
    original, failed = getattr(owner, name), []

    def scarce(*args, **kwargs):
        if not failed and when(*args):
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, scarce)
    return failed


@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [(RunningBatch, "tidy", lambda batch, _: None in batch.rows), (BatchCache, "put", lambda *_: True)],
    ids=["dropped", "replaced"],
)
def test_out_of_memory_while_rows_leave_and_join_loses_nothing(request, tiny_gpt2, monkeypatch, owner, name, when):
    made = make_engine("transformers-gpt2", request, capacity=4)
    failed = plant_once(monkeypatch, owner, name, when)
    loop = EngineLoop(made)
    counts = [4 + 3 * i for i in range(len(PROMPTS))]
    handles = [
        loop.submit(prompt, GenerationParams(max_new_tokens=count, temperature=0))
        for prompt, count in zip(PROMPTS, counts, strict=True)
    ]
    model = reference(tiny_gpt2)
    for prompt, count, handle in zip(PROMPTS, counts, handles, strict=True):
        assert_tokens_of_generate(tiny_gpt2, made, [prompt], [handle.result(timeout=60)], count, model)
    assert failed
    loop.close()


def test_out_of_memory_while_log_probabilities_are_computed_loses_nothing(request, tiny_gpt2, monkeypatch):
    """Rows got their token before the log-probabilities of all rows were there, and lost the output."""
    made = make_engine("transformers-gpt2", request, capacity=4)
    calls = []
    failed = plant_once(monkeypatch, torch.Tensor, "topk", lambda *_: calls.append(1) or len(calls) > 9)
    loop, params = EngineLoop(made), GenerationParams(max_new_tokens=12, temperature=0, logprobs=2)
    completions = loop.generate(PROMPTS, params)
    assert failed
    assert_tokens_of_generate(tiny_gpt2, made, PROMPTS, completions, 12, reference(tiny_gpt2))
    assert all(len(c.logprobs) == len(c.token_ids) == c.num_generated_tokens for c in completions)
    loop.close()


def test_the_failed_forwards_tensors_are_free_when_memory_is_released(request, monkeypatch):
    """A traceback keeps the variables of its frames."""
    made, kept, alive = make_engine("transformers-gpt2", request, capacity=4), [], []

    def scarce(ids, *args, **kwargs):
        activations = torch.zeros(1000)
        kept.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory (planted)")

    monkeypatch.setattr(made, "_forward", scarce)
    monkeypatch.setattr(causal, "release", lambda: alive.append(kept[-1]() is not None))
    params = GenerationParams(max_new_tokens=2, temperature=0)
    made.add(Request(id=1, prompt_ids=[1, 2], max_new_tokens=2, params=params))
    while made.num_unfinished:
        outputs = made.step()
    assert alive == [False] * 2  # with capacity 4, and with 1
    assert "planted" in outputs[0].error


def test_the_capacity_grows_back(request, monkeypatch):
    made = make_engine("transformers-gpt2", request, capacity=8)
    failed = plant_once(monkeypatch, made, "_forward", lambda ids, *_: ids.shape[1] == 1)
    params, number, seen = GenerationParams(max_new_tokens=40, temperature=0, ignore_eos=True), 0, []
    for _ in range(6 * CALM_STEPS):
        while made.num_unfinished < 16:
            made.add(Request(id=number, prompt_ids=[1 + number % 90, 2], max_new_tokens=40, params=params))
            number += 1
        made.step()
        seen.append(made.num_running)
    assert failed
    assert min(seen[2:100]) <= 4
    assert made.capacity == max(seen[-50:]) == 8


def cache_size(engine):
    """Slots times positions of the buffers."""
    layers = engine._batch.cache.layers if engine._batch.cache else []
    return max((layer._buffers[0].shape[0] * layer._buffers[0].shape[2] for layer in layers), default=0)


@pytest.mark.parametrize("model", ["gpt2", "bloom"])
def test_a_long_row_among_short_ones_stays_within_the_memory(request, model, monkeypatch):
    """The cache is a rectangle: beside a long row, each short one takes as much memory."""
    monkeypatch.setattr("hfray.engines.torch.admission.GROW_BY", 8)
    monkeypatch.setattr("hfray.engines.torch.kvcache.GROW_BY", 8)
    limit = 40 * (12 + 6 + 8)
    made = make_engine(f"transformers-{model}", request, capacity=64, kv_positions=limit)
    params = GenerationParams(max_new_tokens=6, temperature=0, ignore_eos=True)
    lengths = [100, *[4 + i % 8 for i in range(100)], 90, 110]
    for i, length in enumerate(lengths):
        ids = [1 + (7 * i + j) % 300 for j in range(length)]
        made.add(Request(id=i, prompt_ids=ids, max_new_tokens=6, params=params))
    tokens, most = {i: [] for i in range(len(lengths))}, 0
    while made.num_unfinished:
        for output in made.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
        assert cache_size(made) <= limit
        most = max(most, made.num_running)
    assert all(len(found) == 6 for found in tokens.values())
    assert most >= 32


def test_rows_that_outgrow_the_memory_are_put_back_and_lose_nothing(request, tiny_bloom, monkeypatch):
    """The engine counts on completions as long as those so far; these become longer."""
    monkeypatch.setattr("hfray.engines.torch.admission.GROW_BY", 4)
    monkeypatch.setattr("hfray.engines.torch.kvcache.GROW_BY", 4)
    monkeypatch.setattr(causal, "GROW_BY", 4)
    limit = 8 * (20 + 5 + 4)
    made = make_engine("transformers-bloom", request, capacity=16, kv_positions=limit)
    for _ in range(40):
        made._expected.observe(10, 3)
    loop, params = EngineLoop(made), GenerationParams(max_new_tokens=40, temperature=0, ignore_eos=True)
    step, sizes = made.step, []

    def measured():
        outputs = step()
        sizes.append(cache_size(made))
        return outputs

    monkeypatch.setattr(made, "step", measured)
    completions = loop.generate(PROMPTS, params)
    assert max(sizes) <= limit
    alone = [loop.generate([prompt], params)[0] for prompt in PROMPTS]
    assert_same_completions(tiny_bloom, made.tokenizer, PROMPTS, completions, alone)
    loop.close()


def test_a_whole_number_is_a_penalty_too(request):
    loop = EngineLoop(make_engine("transformers-gpt2", request))
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, repetition_penalty=2))[0].error is None
    loop.close()
