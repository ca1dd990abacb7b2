"""Grouped attention computes the same as transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hfray.engines.torch.causal import TransformersEngine
from hfray.engines.torch.grouped_attention import NAME, grouped_sdpa


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


def test_attention_is_grouped_where_it_can_be_and_nothing_else_is_asked_for(tiny_llama, tiny_bloom):
    def attention(folder, **options):
        return TransformersEngine.from_folder(folder, **options).model.config._attn_implementation

    assert attention(tiny_llama) == NAME
    assert attention(tiny_llama, attention="eager") == "eager"
    assert attention(tiny_bloom) != NAME  # its attention is its own
