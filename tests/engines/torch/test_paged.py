"""The paged engine: transformers' own continuous batching."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM

from hfray.completion import Prompt
from hfray.engines.torch.paged import GRAPHS_SINCE, check_attention
from hfray.errors import EngineDiedError
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.engines.making import (
    PROMPTS,
    assert_same_completions,
    assert_tokens_of_generate,
    make_engine,
    model_folder,
)

pytestmark = pytest.mark.model  # slow; `make quick` runs the contract suite over this engine


@pytest.mark.parametrize("name", ["paged-llama", "paged-gpt2"])
def test_the_tokens_are_those_of_transformers(request, name):
    loop, folder = EngineLoop(make_engine(name, request, capacity=3)), model_folder(name, request)
    completions = loop.generate(PROMPTS, GenerationParams(max_new_tokens=16, temperature=0))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert_tokens_of_generate(folder, loop.engine, PROMPTS, completions, 16, model)
    loop.close()


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


def test_paged_starts_no_more_than_its_cache_holds(request, tiny_llama):
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
    together = loop.generate(PROMPTS, params)
    assert most == 2
    alone = [loop.generate([prompt], params)[0] for prompt in PROMPTS]
    assert_same_completions(tiny_llama, engine.tokenizer, PROMPTS, together, alone)
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


def test_a_gpu_without_flash_attention_is_refused():
    for implementation in ("sdpa", "eager", "paged|sdpa"):
        with pytest.raises(
            ValueError, match=rf"uses {re.escape(implementation)}.*flash_attention_2.*backend.paged=false"
        ):
            check_attention("cuda", implementation)
    check_attention("cuda", "flash_attention_2")
    check_attention("cpu", "sdpa")


def test_cuda_graphs_are_used_with_a_release_that_pyproject_admits():
    """The gate asked for a release that pyproject.toml excluded, so no one got CUDA graphs."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["optional-dependencies"]["transformers"]]
    (admitted,) = (requirement.specifier for requirement in wanted if requirement.name == "transformers")
    assert str(GRAPHS_SINCE) in admitted
