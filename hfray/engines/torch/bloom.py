"""Architectures with an attention of their own, such as BLOOM: masks and ALiBi biases made on the device.

transformers makes a few of their constants on the CPU in each forward, and each copy to a GPU waits for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.models.bloom.modeling_bloom import BloomModel, build_alibi_tensor

from hfray.engines.torch.transfer import send

NAME = "hfray_eager"


def eager_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    """The same as transformers' `eager_mask`: 0 for visible positions and the dtype's minimum for all others."""
    options = {"allow_is_causal_skip": False, "allow_torch_fix": False}
    visible = sdpa_mask(*args, **{**kwargs, **options})
    assert visible is not None
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


AttentionMaskInterface.register(NAME, eager_mask)


def use_device_masks(model: Any) -> None:
    """Make the masks of a model with an attention of its own on the device, and the biases of BLOOM."""
    if model.config._attn_implementation != "eager" or model.is_backend_compatible():
        return
    model.config._attn_implementation = NAME
    if isinstance(getattr(model, "transformer", None), BloomModel):
        model.transformer.build_alibi_tensor = Alibi()


class Alibi:
    """As `BloomModel.build_alibi_tensor`, with the slopes kept on the device."""

    def __init__(self) -> None:
        self._slopes: torch.Tensor | None = None  # [heads]

    def __call__(self, attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        device = attention_mask.device
        if self._slopes is None or self._slopes.device != device:
            biases = build_alibi_tensor(torch.ones((1, 2)), num_heads, torch.float32)
            self._slopes = send(biases[:, 0, 1], device)  # the bias of position 1 is the slope
        positions = (attention_mask.cumsum(dim=-1) - 1) * attention_mask
        rows, length = attention_mask.shape
        return (self._slopes[:, None] * positions[:, None, :]).reshape(rows * num_heads, 1, length).to(dtype)
