"""The transformers engine: batches, and what happens when memory runs out."""

from __future__ import annotations

import pytest
import torch

from hfray.engines.base import Request
from hfray.engines.torch.causal import LARGE_PREFILL, TransformersEngine
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.engines.making import PROMPTS, assert_tokens_of_generate, make_engine, model_folder


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

    def scarce(ids, batch):
        if ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return forward(ids, batch)

    monkeypatch.setattr(made, "_forward", scarce)
    loop = EngineLoop(made)
    params = GenerationParams(max_new_tokens=12, temperature=0)
    completions = loop.generate(PROMPTS, params)
    folder = model_folder(engine, request)
    assert_tokens_of_generate(folder, made, PROMPTS, completions, 12, reference(folder))
    assert made.capacity == 2
    loop.close()


def test_out_of_memory_while_finished_rows_are_dropped_loses_nothing(request, tiny_gpt2, monkeypatch):
    made = make_engine("transformers-gpt2", request, capacity=4)
    thin_out, failed = made._thin_out, []

    def scarce():
        if not failed and None in made._rows and made._waiting:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        thin_out()

    monkeypatch.setattr(made, "_thin_out", scarce)
    loop, params = EngineLoop(made), GenerationParams(max_new_tokens=12, temperature=0)
    completions = loop.generate(PROMPTS, params)
    assert_tokens_of_generate(tiny_gpt2, made, PROMPTS, completions, 12, reference(tiny_gpt2))
    assert failed
    loop.close()


def test_a_whole_number_is_a_penalty_too(request):
    loop = EngineLoop(make_engine("transformers-gpt2", request))
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, repetition_penalty=2))[0].error is None
    loop.close()
