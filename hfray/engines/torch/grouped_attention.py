"""Grouped-query attention for decoding that reads each key-value head once for all its query heads.

With a padding mask, transformers' own `sdpa` copies every key-value head for each query head of its group. A batch of
rows of different lengths always has a mask, so each token would copy the whole KV cache several times.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "hfray_grouped_sdpa"


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The same result as `sdpa_attention_forward`, with the same shapes.

    Args:
        query: [rows, query heads, positions, width].
        key: [rows, key-value heads, all positions, width]; `value` likewise.
        attention_mask: [rows, 1 or query heads, positions, all positions], or None for no mask.

    Returns:
        [rows, positions, query heads, width], and None for the weights.
    """
    rows, heads, positions, width = query.shape
    per_head = attention_mask is not None and attention_mask.shape[1] > 1  # for example ALiBi's biases
    unknown = any(kwargs.get(name) is not None for name in ("position_bias", "cache"))  # of transformers 5.19
    if positions > 1 or heads == key.shape[1] or per_head or unknown:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    # Treat the query heads of a key-value head as positions: they have the same keys and the same mask.
    query = query.reshape(rows, key.shape[1], -1, width)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return attended.reshape(rows, 1, heads, -1), None


def mask_without_wait(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """As transformers' `sdpa_mask`, which looks on the CPU whether a batch has padding. A GPU would have to wait."""
    on_cpu = torch.device(kwargs.get("device", "cpu")).type == "cpu"
    if not on_cpu and kwargs.get("attention_mask") is not None:
        kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, mask_without_wait)


def use_grouped_attention(model: Any) -> None:
    """Use `grouped_sdpa` in a model and its parts wherever they use transformers' pluggable `sdpa`."""
    config = model.config
    if config._attn_implementation != "sdpa" or not model.is_backend_compatible():
        return
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    kinds = {"": NAME} | {name: part._attn_implementation for name, part in parts.items() if part is not None}
    model.set_attn_implementation({name: NAME if kind == "sdpa" else kind for name, kind in kinds.items()})
