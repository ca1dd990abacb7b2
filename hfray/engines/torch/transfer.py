"""Copies between the CPU and the model's device. A copy to the CPU waits for the device, so a step makes only one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def to_device(values: Sequence[Any] | np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The values as a tensor on the device. The CPU does not wait for the copy."""
    return send(torch.tensor(values, dtype=dtype), device)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device. The CPU does not wait for the copy."""
    if device.type == "cpu":
        return tensor
    # Only a copy from pinned memory is asynchronous. torch reuses pinned blocks, and waits for the copies from them.
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> list[np.ndarray]:
    """The tensors' values, with one wait for the device. Whole numbers up to 2**53 arrive exactly."""
    if len(tensors) == 1 or tensors[0].device.type == "cpu":
        return [tensor.cpu().numpy() for tensor in tensors]
    flat = torch.cat([tensor.flatten().double() for tensor in tensors]).cpu().numpy()
    parts = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    return [
        part.reshape(tuple(tensor.shape)).astype(np.float64 if tensor.is_floating_point() else np.int64)
        for part, tensor in zip(parts, tensors, strict=True)
    ]
