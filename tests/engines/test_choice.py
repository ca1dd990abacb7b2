"""backend=auto: what decides, as a table; and what this machine says."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace

import pytest

from hfray.engines.choice import Facts, choose, look, resolve
from hfray.engines.load import load_engine
from hfray.inference.worker import Worker
from tests.conftest import batch_settings

BLOOM = Facts(architecture="BloomForCausalLM", heads=16, vllm="0.33.0", vllm_knows=True)
LLAMA = Facts(architecture="LlamaForCausalLM", heads=32, flash_attention=True, pageable=True)  # without vLLM
NO_VLLM = "vLLM is not installed"


@pytest.mark.parametrize(
    ("facts", "changes", "engine", "words"),
    [
        (BLOOM, {}, "vllm", "vLLM 0.33.0 runs BloomForCausalLM"),
        (BLOOM, {"beyond_greedy": "temperature=1.0"}, "vllm", "vLLM 0.33.0"),
        (BLOOM, {"gpus": 0, "fp32": True}, "vllm", "vLLM 0.33.0"),
        (BLOOM, {"gpus": 8}, "vllm", "vLLM 0.33.0"),
        (BLOOM, {"gpus": 3}, "transformers", "16 attention heads cannot be divided among 3 GPUs"),
        (BLOOM, {"vllm_knows": False}, "transformers", "vLLM has no BloomForCausalLM, and flash attention is not"),
        (BLOOM, {"vllm_knows": False, "flash_attention": True}, "transformers", "attention of BloomForCausalLM cannot"),
        (BLOOM, {"fp32": True}, "transformers", "kernels compute in 16 bits"),
        (BLOOM, {"from_pretrained": True}, "transformers", "model.kwargs"),
        (BLOOM, {"map": True}, "transformers", "device.map of single layers"),
        (
            BLOOM,
            {"beyond_vllm": "generation.no_repeat_ngram_size=3"},
            "transformers",
            "vLLM has no generation.no_repeat_ngram_size=3",
        ),
        (BLOOM, {"task": "summarization"}, "transformers", "vLLM does not run task=summarization"),
        (BLOOM, {"vllm": None, "vllm_problem": "it is broken"}, "transformers", "as it is broken, and"),
        (LLAMA, {}, "paged", f"paged batching with flash attention, as {NO_VLLM}"),
        (LLAMA, {"gpus": 0}, "transformers", f"{NO_VLLM}, and paged batching needs a GPU"),
        (LLAMA, {"gpus": 2}, "transformers", "on one GPU"),
        (LLAMA, {"map": True}, "transformers", "on one GPU"),
        (LLAMA, {"beyond_greedy": "temperature=1.0"}, "transformers", "without generation.temperature=1.0"),
        (LLAMA, {"beyond_greedy": ""}, "transformers", "rows may sample"),
        (LLAMA, {"typed": True}, "transformers", "paged batching holds no answers to a form"),
        (BLOOM, {"typed": True}, "vllm", "vLLM 0.33.0"),
        (LLAMA, {"fp32": True}, "transformers", "flash attention computes in 16 bits"),
        (LLAMA, {"flash_attention": False}, "transformers", "flash attention is not installed"),
        (LLAMA, {"pageable": False}, "transformers", "LlamaForCausalLM cannot be paged"),
        (LLAMA, {"vllm": "0.33.0", "vllm_knows": True}, "vllm", "runs LlamaForCausalLM"),
    ],
)
def test_the_choice(facts, changes, engine, words):
    choice = choose(replace(facts, **changes))
    assert choice.engine == engine
    assert words in choice.reason


def settings_of(folder, *overrides):
    io = ["input.path=-", "output.path=-", "backend=auto", f"model.source={folder}"]
    return batch_settings("conf=smollm2_cpu", *io, *overrides)


def test_the_facts_on_this_machine(tiny_bloom):
    settings = settings_of(tiny_bloom, "generation.repetition_penalty=1.2")
    facts = look(settings, tiny_bloom, fixed_params=True)
    assert (facts.architecture, facts.heads, facts.gpus) == ("BloomForCausalLM", 4, 0)
    assert (facts.task, facts.map, facts.fp32, facts.from_pretrained) == ("text-generation", False, False, False)
    assert facts.beyond_greedy == "repetition_penalty=1.2"
    assert look(settings, tiny_bloom, fixed_params=False).beyond_greedy == ""
    assert (facts.vllm is not None) == facts.vllm_knows == (importlib.util.find_spec("vllm") is not None)
    given = settings_of(tiny_bloom, "generation.no_repeat_ngram_size=3", "model.precision=exact", "+model.kwargs.a=1")
    facts = look(given, tiny_bloom, fixed_params=True)
    assert (facts.beyond_vllm, facts.fp32, facts.from_pretrained) == ("generation.no_repeat_ngram_size=3", True, True)


def test_forms_of_answers(tiny_llama):
    """Both engines enforce a choice; an engine that cannot enforce a schema is not chosen."""
    choice = settings_of(tiny_llama, "response.choice=[yes, no]")
    facts = look(choice, tiny_llama, fixed_params=True)
    assert (facts.typed, facts.beyond_vllm) == (True, None)
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 3}}})
    hard = settings_of(tiny_llama, f"response.schema={schema}")
    assert "multipleOf" in look(hard, tiny_llama, fixed_params=True).beyond_vllm


@pytest.mark.parametrize(("model", "pageable"), [("tiny_llama", True), ("tiny_bloom", False)])
def test_which_attention_transformers_can_page(request, model, pageable):
    from hfray.engines.choice import _is_pageable

    assert _is_pageable(request.getfixturevalue(model), False) is pageable


def test_an_engine_that_the_settings_name_is_kept():
    settings = batch_settings("conf=smollm2_cpu", "input.path=-", "output.path=-")
    assert resolve(settings) == (settings, None)


def test_a_broken_vllm_is_no_error(tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("vllm", "hfray.engines.vllm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    _, choice = resolve(settings_of(tiny_llama), tiny_llama)
    assert choice.engine == "transformers"
    assert "vLLM cannot be imported (OSError: libcudart.so.13" in choice.reason


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="with vLLM the engine is vLLM's")
def test_every_way_to_an_engine_takes_auto(tiny_llama):
    from hfray.engines.torch.causal import TransformersEngine

    settings = settings_of(tiny_llama, "backend.batch_size=5", "model.precision=exact")
    engine = load_engine(settings, folder=tiny_llama)
    assert isinstance(engine, TransformersEngine)
    assert engine.capacity == 5
    engine.close()
    worker = Worker(settings, tiny_llama)
    assert worker.settings.backend.name == "transformers"
    assert "vLLM is not installed" in worker.choice
    worker.loop.close()
