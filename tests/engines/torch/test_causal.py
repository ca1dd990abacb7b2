"""The transformers engine: batches, memory, and layers replaced by faster ones that compute the same."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

from hfray.engines.base import Request
from hfray.engines.torch.causal import LARGE_PREFILL, TransformersEngine
from hfray.engines.torch.grouped_attention import NAME, grouped_sdpa
from hfray.engines.torch.packed_linear import PackedLinear, can_pack, pack_linears
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.engines.making import PROMPTS, assert_tokens_of_generate, make_engine, model_folder

needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="torch cannot pack weights on this CPU")


class Layers(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.linear, self.conv = torch.nn.Linear(48, 80), Conv1D(32, 80)  # Conv1D: outputs, inputs
        self.norm = torch.nn.LayerNorm(32)
        torch.nn.init.normal_(self.conv.bias)
        self.to(dtype)
        self.dtype, self.device = dtype, torch.device("cpu")

    def forward(self, inputs):
        return self.norm(self.conv(self.linear(inputs)))


@needs_packing
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@torch.inference_mode()
def test_packed_layers_compute_what_they_were(dtype, tolerance):
    if not can_pack(dtype):
        pytest.skip(f"{dtype} is not packed on this CPU")
    torch.manual_seed(0)
    layers = Layers(dtype)
    batches = [torch.randn(shape, dtype=dtype) for shape in [(1, 48), (5, 48), (3, 7, 48)]]
    batches.append(torch.randn((3, 7, 48), dtype=dtype)[:, -1:])  # a view, as the last positions are
    before, weight = [layers(batch) for batch in batches], layers.linear.weight
    pack_linears(layers, rows=4)
    assert {type(layers.linear), type(layers.conv)} == {PackedLinear}
    assert torch.equal(layers.linear.weight, weight)
    for batch, expected in zip(batches, before, strict=True):
        torch.testing.assert_close(layers(batch), expected, atol=tolerance, rtol=tolerance)


@needs_packing
def test_layers_that_a_quantizer_or_a_hook_changed_are_left_alone():
    layers = Layers(torch.float32)
    layers.conv.register_forward_hook(lambda layer, inputs, output: output * 2)
    layers.linear.forward = lambda inputs: inputs.new_zeros((*inputs.shape[:-1], 80))
    pack_linears(layers, rows=4)
    assert [type(layers.linear), type(layers.conv)] == [torch.nn.Linear, Conv1D]


@pytest.mark.parametrize("key_value_heads", [1, 2, 6])
@pytest.mark.parametrize("mask_heads", [None, 1, 6])
@pytest.mark.parametrize("positions", [1, 4])
def test_grouped_attention_is_that_of_transformers(key_value_heads, mask_heads, positions):
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 6 // key_value_heads
    query = torch.randn((3, 6, positions, 16))
    key, value = torch.randn((3, key_value_heads, 9, 16)), torch.randn((3, key_value_heads, 9, 24))
    mask = None
    if mask_heads:
        mask = torch.ones((3, mask_heads, positions, 9), dtype=torch.bool)
        mask[0, -1, :, 6:] = False
        mask[1, ..., :4] = False
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, _ = grouped_sdpa(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected)


@needs_packing
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2", "tiny_bloom"])
def test_every_architecture_is_packed(request, model):
    engine = TransformersEngine.from_folder(request.getfixturevalue(model))
    kinds = {type(module) for module in engine.model.modules()}
    assert PackedLinear in kinds
    assert not kinds & {torch.nn.Linear, Conv1D}


def test_attention_is_grouped_where_it_can_be_and_nothing_else_is_asked_for(tiny_llama, tiny_bloom):
    def attention(folder, **options):
        return TransformersEngine.from_folder(folder, **options).model.config._attn_implementation

    assert attention(tiny_llama) == NAME
    assert attention(tiny_llama, attention="eager") == "eager"
    assert attention(tiny_bloom) != NAME  # its attention is its own


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
