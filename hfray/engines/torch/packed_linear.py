"""Linear layers whose weights lie in oneDNN's own order: on a CPU, small batches run at the speed of large ones.

A plain product of a few dozen rows spends most of its time bringing the weights into that order, at every token.
These are the operators that torch.compile's own CPU backend emits; called directly, they need no compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D


class PackedLinear(torch.nn.Module):
    """A linear layer for inference alone.

    Args:
        weight: [outputs, inputs].
        bias: [outputs], or None.
        rows: how many are expected at once; no bound.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> None:
        super().__init__()
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)

    @property
    def weight(self) -> torch.Tensor:
        """A plain copy [outputs, inputs], for the rare model that looks at a layer's weights in its forward."""
        return self._packed.to_dense()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., inputs] to [..., outputs]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")


def pack_linears(model: Any, rows: int) -> None:
    """Put packed layers in the place of a CPU model's plain linear ones, where this torch and CPU can.

    The weights move: the model cannot be trained or saved after it. A head that is tied to the embeddings gets a copy.
    """
    if model.device.type != "cpu" or getattr(model, "hf_quantizer", None) is not None or not can_pack(model.dtype):
        return
    # The parents alone: a list of the layers too would keep all old weights until the end.
    for parent in [module for module in model.modules() if next(module.children(), None) is not None]:
        for name, child in parent.named_children():
            if _is_plain(child) and child.weight.dtype == model.dtype:
                weight = child.weight.T if type(child) is Conv1D else child.weight
                setattr(parent, name, PackedLinear(weight, child.bias, rows))


def _is_plain(layer: torch.nn.Module) -> bool:
    """Whether a layer is linear and nothing else: quantizers and hooks keep the class and change what it does."""
    if type(layer) not in (torch.nn.Linear, Conv1D) or type(layer.weight) is not torch.nn.Parameter:
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type here."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    square = torch.zeros((16, 16), dtype=dtype)
    try:
        with torch.inference_mode():
            PackedLinear(square, None, 1)(square)
    except (AttributeError, NotImplementedError, RuntimeError):  # a torch without these operators, or a CPU
        return False
    return True
