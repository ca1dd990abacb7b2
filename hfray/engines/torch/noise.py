"""Random numbers that depend only on a seed, a step and a position: a hash of the three, not a generator with a state.

A row therefore draws the same numbers in every batch, after a restart, and on every device.
"""

from __future__ import annotations

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # constants of splitmix64
MIX1, MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LOW = 0xFFFFFFFF  # 32 bits
# A 32-bit hash by Chris Wellons (hash-prospector). Both factors are below 2**31, so no product exceeds an int64.
FACTOR1, FACTOR2 = 0x21F0AAAD, 0x735A2D97


def noise_keys(seeds: list[int], steps: list[int]) -> np.ndarray:
    """The key [rows, 2] of each pair of seed and step: two numbers of 32 bits."""
    seed = _splitmix(np.array([s & (2**64 - 1) for s in seeds], dtype=np.uint64))
    mixed = _splitmix(seed + (np.array(steps, dtype=np.uint64) + np.uint64(1)) * GOLDEN)
    return np.stack([mixed & np.uint64(LOW), mixed >> np.uint64(32)], axis=1).astype(np.int64)


def gumbel_noise(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Independent numbers [rows, count] of the Gumbel distribution, as float32.

    Args:
        keys: int64 [rows, 2], from `noise_keys`.
    """
    positions = torch.arange(count, device=keys.device)
    hashed = _hash(_hash(positions ^ keys[:, :1]) ^ keys[:, 1:])
    uniform = (hashed.double() + 0.5) * 2.0**-32
    return uniform.log_().neg_().log_().neg_().float()


def _splitmix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * MIX1
    values = (values ^ (values >> np.uint64(27))) * MIX2
    return values ^ (values >> np.uint64(31))


def _hash(values: torch.Tensor) -> torch.Tensor:
    values = (values ^ (values >> 16)) * FACTOR1 & LOW
    values = (values ^ (values >> 15)) * FACTOR2 & LOW
    return values ^ (values >> 15)
