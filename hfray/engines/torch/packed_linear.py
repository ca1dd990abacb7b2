"""Linear layers with weights in oneDNN's packed layout: on a CPU, small batches run as fast as large ones.

With a few dozen rows, a plain linear layer spends most of its time packing the weights, again for every token.
torch.compile's CPU backend uses the same operators; a direct call needs no compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D


class PackedLinear(torch.nn.Module):
    """A linear layer for inference only.

    Args:
        weight: [outputs, inputs].
        bias: [outputs], or None.
        rows: the expected number of rows; not a limit.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> None:
        super().__init__()
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)

    @property
    def weight(self) -> torch.Tensor:
        """An unpacked copy [outputs, inputs], for the rare model that reads a layer's weights in its forward."""
        return self._packed.to_dense()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., inputs] to [..., outputs]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")


def pack_linears(model: Any, rows: int) -> None:
    """Replace the plain linear layers of a CPU model by packed ones if torch and the CPU support it.

    The model cannot be trained or saved afterwards. A head tied to the embeddings gets a copy of the weights.
    """
    if model.device.type != "cpu" or getattr(model, "hf_quantizer", None) is not None or not can_pack(model.dtype):
        return
    # List only the parents: a list of the layers would keep all old weights in memory.
    for parent in [module for module in model.modules() if next(module.children(), None) is not None]:
        for name, child in parent.named_children():
            if _is_plain(child) and child.weight.dtype == model.dtype:
                weight = child.weight.T if type(child) is Conv1D else child.weight
                setattr(parent, name, PackedLinear(weight, child.bias, rows))


def _is_plain(layer: torch.nn.Module) -> bool:
    """Whether a layer is an unmodified linear layer: quantizers and hooks keep the class and change its behaviour."""
    if type(layer) not in (torch.nn.Linear, Conv1D) or type(layer.weight) is not torch.nn.Parameter:
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and CPU can pack weights of this type."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    square = torch.zeros((16, 16), dtype=dtype)
    try:
        with torch.inference_mode():
            PackedLinear(square, None, 1)(square)
    except (AttributeError, NotImplementedError, RuntimeError):  # unsupported by this torch or this CPU
        return False
    return True
