"""Engines over the tiny models, by name."""

from __future__ import annotations

import os

import pytest
import torch

from hfray.completion import Prompt
from tests.conftest import QUESTIONS
from tests.ties import assert_same_until_tie

TRANSFORMERS = ["transformers-gpt2", "transformers-bloom", "transformers-llama", "paged-llama"]
ENGINES = ["fake", *TRANSFORMERS, "openvino-gpt2", "vllm-llama"]
PROMPTS = [Prompt(question) for question in QUESTIONS]


def make_engine(name, request, *, precision="exact", **options):
    """The engine of a name such as `openvino-gpt2`; `request` is pytest's, for the model's folder.

    Tests compare tokens, so an engine computes in fp32 on every machine.
    """
    if name == "fake":
        from hfray.engines.fake import FakeEngine

        return FakeEngine(context_length=128, tokens_per_step=3, **options)
    backend, model = name.split("-")
    if backend == "transformers":
        from hfray.engines.torch.causal import TransformersEngine

        options = {"device": os.environ.get("HFRAY_TEST_DEVICE", "cpu"), "precision": precision} | options
        return TransformersEngine.from_folder(request.getfixturevalue(f"tiny_{model}"), **options)
    if backend == "paged":
        from hfray.engines.torch.paged import PagedEngine

        options = {"kv_cache_gib": 0.01, "precision": precision} | options
        return PagedEngine.from_folder(request.getfixturevalue(f"tiny_{model}"), **options)
    if backend == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed: it takes an environment of its own")
        from hfray.engines.vllm import VLLMEngine

        folder = request.getfixturevalue(f"tiny_{model}")
        options = {"kv_cache_gib": 0.25, "precision": precision} | options
        return VLLMEngine(folder, enforce_eager=True, **options)
    from hfray.engines.openvino import OpenVINOEngine

    folder = request.getfixturevalue(f"tiny_{model}_ir")
    return OpenVINOEngine(folder, precision=precision, kv_cache_gib=1, **options)


def model_folder(name, request):
    """The Hugging Face folder of an engine's model; None for the fake engine."""
    return None if name == "fake" else request.getfixturevalue(f"tiny_{name.split('-')[1]}")


def assert_same_completions(folder, tokenizer, prompts, first, second):
    """Check that greedy completions are equal, or equal up to a near tie of the model's logits."""
    assert len(first) == len(second) == len(prompts)
    for prompt, one, other in zip(prompts, first, second, strict=True):
        if folder is None:
            assert one.token_ids == other.token_ids
        else:
            assert_same_until_tie(folder, tokenizer.encode(prompt.text), one.token_ids, other.token_ids)


def generate(model, tokenizer, text, count):
    """The greedy tokens of transformers' own `generate` for one prompt, without the end-of-text token."""
    ids = torch.tensor([tokenizer.encode(text)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    tokens = output[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(0)] if 0 in tokens else tokens


def assert_tokens_of_generate(folder, engine, prompts, completions, count, model=None):
    """Check greedy completions against `generate` of the engine's model (or of `model`)."""
    tokenizer = engine.tokenizer
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = generate(model or engine.model, tokenizer, prompt.text, count)
        assert_same_until_tie(folder, tokenizer.encode(prompt.text), completion.token_ids, expected)
