"""How many rows an engine runs at once if backend.batch_size is not set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfray.config.engine import EngineSettings


CAPACITY = {"openvino": 256, "vllm": 256, "fake": 64}
CPU_CAPACITY, MAX_CAPACITY = 32, 1024  # transformers: rows on a CPU, and on a GPU (fewer if its memory is short)
VLLM_GPU_CAPACITY = 1024  # vLLM's choice for a GPU of 70 GiB and more; it is 256 for smaller ones
OPENVINO_LEAST = 128  # rows with a small KV cache; 256 rows were 8 % faster than 128 on two cores
GPU_LEAST = 256  # rows of any engine on a GPU with little memory
# Tokens of a typical row. An engine's capacity is its memory divided by the memory of a typical row. If the KV cache
# gets full, the engine evicts rows and computes them again.
ROW_TOKENS = 320


def capacity_of(settings: EngineSettings) -> int:
    """The maximum number of rows that the engine runs at once. An engine with little memory may choose fewer."""
    backend = settings.backend
    if backend.name in ("transformers", "auto"):
        return backend.batch_size or (MAX_CAPACITY if settings.device.uses_gpu else CPU_CAPACITY)
    if backend.name == "vllm" and settings.device.uses_gpu:
        return backend.batch_size or VLLM_GPU_CAPACITY
    return backend.batch_size or CAPACITY[backend.name]


def least_capacity_of(settings: EngineSettings) -> int:
    """The number of rows that the engine runs at once if its KV cache or its device is small."""
    backend = settings.backend
    if backend.batch_size:
        return backend.batch_size
    least = OPENVINO_LEAST if backend.name == "openvino" else GPU_LEAST
    return min(capacity_of(settings), least)


def capacity_for_cache(tokens: int) -> int:
    """Rows that OpenVINO's engine runs at once if its KV cache holds `tokens` tokens."""
    return min(max(OPENVINO_LEAST, tokens // ROW_TOKENS), CAPACITY["openvino"])
