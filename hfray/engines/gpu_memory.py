"""How much of a GPU's memory this process may take. Several workers share a GPU if each books a part of it."""

from __future__ import annotations

from typing import Any


def limit_memory(share: float) -> None:
    """Let torch allocate at most this share of the memory of every visible GPU in this process."""
    import torch

    if share < 1:
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, index)


def usable_memory(device: Any) -> int:
    """Bytes that this process may still take of a CUDA device: what is free, within the share of `limit_memory`."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return usable_bytes(free, total, torch.cuda.memory_reserved(device), share)


def usable_bytes(free: int, total: int, taken: int, share: float) -> int:
    """Bytes that a process may still take of a GPU.

    Args:
        free: bytes that no process uses.
        total: size of the GPU's memory in bytes.
        taken: bytes that this process uses already.
        share: the part of `total` that this process may use.
    """
    return max(0, min(free, int(total * share) - taken))
