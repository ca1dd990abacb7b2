"""Packed linear layers compute the same as the layers that they replace."""

from __future__ import annotations

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from hfray.engines.torch.causal import TransformersEngine
from hfray.engines.torch.packed_linear import PackedLinear, can_pack, pack_linears

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


@needs_packing
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2", "tiny_bloom"])
def test_every_architecture_is_packed(request, model):
    engine = TransformersEngine.from_folder(request.getfixturevalue(model), precision="exact")
    kinds = {type(module) for module in engine.model.modules()}
    assert PackedLinear in kinds
    assert not kinds & {torch.nn.Linear, Conv1D}


def test_a_type_that_cannot_be_packed_leaves_the_model_as_it_was():
    layers = Layers(torch.float64)
    assert not can_pack(torch.float64)
    pack_linears(layers, rows=4)
    assert [type(layers.linear), type(layers.conv)] == [torch.nn.Linear, Conv1D]
