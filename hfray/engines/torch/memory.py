"""The memory of the model's devices: what the KV cache may take, and what to do when memory runs out."""

from __future__ import annotations

import gc
from typing import Any

import torch

from hfray.engines.capacity import CPU_CAPACITY, MAX_CAPACITY, ROW_TOKENS

KV_SHARE = 0.7  # share of the memory left free by the weights; a forward's tensors need the rest


def out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory; its CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release() -> None:
    """Return unused memory to the device.

    Call this outside of the `except` block: the exception's traceback keeps the tensors of the failed forward.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_positions(model: Any) -> int | None:
    """How many positions of rows the KV cache has memory for on the model's GPUs; None on a CPU."""
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    if not devices:
        return None
    # Of a model on several GPUs, each has about the same share of the layers.
    free = min(free_bytes(device) for device in devices) * len(devices)
    return max(1, int(free * KV_SHARE / position_bytes(model)))


def position_bytes(model: Any) -> int:
    """Bytes of the keys and values of one token in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize


def limit_memory(share: float) -> None:
    """Let this process allocate at most this share of the memory of every visible GPU: others share the GPU."""
    if share < 1:
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, index)


def free_bytes(device: torch.device | str) -> int:
    """The memory that this process may still allocate on a GPU, within the share of `limit_memory`."""
    free, total = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return usable_bytes(free + reserved - allocated, total, allocated, share)


def usable_bytes(free: int, total: int, taken: int, share: float) -> int:
    """Bytes that a process may still take of a GPU.

    Args:
        free: bytes that no process uses.
        total: size of the GPU's memory in bytes.
        taken: bytes that this process uses already.
        share: the part of `total` that this process may use.
    """
    return max(0, min(free, int(total * share) - taken))


def default_rows(positions: int | None) -> int:
    """How many rows an engine runs at once if nobody says: what the memory holds at `ROW_TOKENS` tokens each."""
    if positions is None:
        return CPU_CAPACITY
    return max(1, min(MAX_CAPACITY, positions // ROW_TOKENS))
