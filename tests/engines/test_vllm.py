"""The vLLM engine; skipped where vLLM is not installed."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfray.completion import Prompt
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.engines.making import PROMPTS, assert_tokens_of_generate, make_engine, model_folder


@pytest.mark.parametrize("name", ["vllm-llama"])
def test_the_tokens_are_those_of_transformers(request, name):
    loop, folder = EngineLoop(make_engine(name, request, capacity=3)), model_folder(name, request)
    completions = loop.generate(PROMPTS, GenerationParams(max_new_tokens=16, temperature=0))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert_tokens_of_generate(folder, loop.engine, PROMPTS, completions, 16, model)
    loop.close()


def test_what_vllm_refuses_is_the_rows_error_and_prompts_beyond_a_step_wait(request):
    loop = EngineLoop(make_engine("vllm-llama", request, capacity=16, max_num_batched_tokens=128))
    prompts = [Prompt(f"row number {number} " * 3) for number in range(12)]  # more tokens than one step takes
    sampled = loop.generate(prompts, GenerationParams(max_new_tokens=8, temperature=1.0))
    assert sum(c.num_prompt_tokens for c in sampled) > 128
    assert all(c.error is None for c in sampled)
    hot = loop.generate(PROMPTS[:2], GenerationParams(max_new_tokens=8, temperature=50.0))
    assert all("vLLM refuses" in c.error and "temperature" in c.error for c in hot)
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=8, temperature=0))[0].error is None
    loop.close()
