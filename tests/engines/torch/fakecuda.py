"""A GPU that is not there: torch's FakeTensorMode gives tensors that say they are on `cuda`, and computes only shapes.

Under it, a tensor on the wrong device raises, and so does each read of a tensor's values on the CPU (`.item()`,
`.tolist()`, `if tensor`), which would make the CPU wait for a real GPU.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hfray.engines.torch import sampling
from hfray.engines.torch.causal import TransformersEngine

TOKEN = 5  # the token that every row gets


class Operations(TorchDispatchMode):
    """Counts operations on the fake GPU, copies to it and copies from it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()
        self.names = Counter[str]()
        self.copied_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sources = [arg for arg in args if isinstance(arg, torch.Tensor)]
        name = str(func)
        if name.startswith("prim."):  # a look at a tensor's properties
            return result
        if isinstance(result, torch.Tensor) and sources:
            source = sources[1] if name.startswith("aten.copy_") and len(sources) > 1 else sources[0]
            pair = (source.device.type, result.device.type)
            if pair == ("cpu", "cuda"):
                asynchronous = (kwargs or {}).get("non_blocking", False)
                self.counts["to GPU" if asynchronous else "to GPU, with a wait"] += 1
            if pair == ("cuda", "cpu"):
                self.counts["from GPU"] += 1
        if any(t.device.type == "cuda" for t in [*sources, result] if isinstance(t, torch.Tensor)) and not func.is_view:
            self.counts["operations"] += 1
            self.names[name] += 1
            if isinstance(result, torch.Tensor):
                self.copied_bytes += result.nbytes
        return result


@contextlib.contextmanager
def fake_cuda(monkeypatch) -> Iterator[list[int]]:
    """Run the block under FakeTensorMode. Yields the number of tensors of each read of tokens that the sampler made.

    The sampler's only read of the GPU is replaced: it counts, and returns the same token for each row.
    """
    reads: list[int] = []

    def to_host(*tensors):
        reads.append(len(tensors))
        assert all(tensor.device.type == "cuda" for tensor in tensors)
        kinds = [float if t.is_floating_point() else bool if t.dtype == torch.bool else np.int64 for t in tensors]
        return [
            np.full(tuple(tensor.shape), TOKEN if kind is np.int64 else 0, dtype=kind)
            for tensor, kind in zip(tensors, kinds, strict=True)
        ]

    monkeypatch.setattr(sampling, "to_host", to_host)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    # A fake tensor made of one number keeps the number, and the mode would copy it to a real GPU.
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)
    # transformers leaves out its own looks at the mask for fake tensors, and makes them on a real GPU
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda tensor=None: False)
    with FakeTensorMode():
        yield reads


class FakeTokenizer:
    """What the engine reads of a tokenizer."""

    class hf:
        eos_token_id = 0

    bos_id = 0


def fake_engine(model: str, **options) -> TransformersEngine:
    """An engine over a small model with random weights on the fake GPU."""
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    from hfray.engines.torch.bloom import use_device_masks
    from hfray.engines.torch.grouped_attention import use_grouped_attention

    sizes = {"hidden_size": 32, "vocab_size": 400, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    made = {
        "bloom": lambda: BloomForCausalLM(BloomConfig(n_layer=2, n_head=6, **(sizes | {"hidden_size": 48}))),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=4096, **sizes)),
        "llama": lambda: LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=64,
                max_position_embeddings=4096,
                **sizes,
            )
        ),
    }[model]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda"):
            made = made().eval()
    finally:
        torch.set_default_dtype(default)
    use_grouped_attention(made)
    use_device_masks(made)
    options = {"capacity": 256, "kv_positions": 1 << 20} | options
    return TransformersEngine(made, FakeTokenizer(), **options)
