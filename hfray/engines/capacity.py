"""How many rows an engine runs at once if backend.batch_size is not set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfray.config.engine import EngineSettings


CAPACITY = {"openvino": 256, "vllm": 256, "fake": 64}
CPU_CAPACITY, MAX_CAPACITY = 32, 256  # transformers: on a CPU; on a GPU the maximum, less if memory is short
OPENVINO_LEAST = 128  # OpenVINO with a small KV cache; 256 rows were 8 % faster than 128 on two cores
# Tokens of a typical row. Memory divided by the memory of a typical row gives the capacity of every engine. A full KV
# cache evicts rows and computes them again.
ROW_TOKENS = 320


def capacity_of(settings: EngineSettings) -> int:
    """Rows that the engine will run at once. An engine that looks at its memory may choose fewer."""
    backend = settings.backend
    if backend.name == "transformers":
        return backend.batch_size or (MAX_CAPACITY if settings.device.uses_gpu else CPU_CAPACITY)
    return backend.batch_size or CAPACITY[backend.name]


def least_capacity_of(settings: EngineSettings) -> int:
    """Rows that the engine will run at once even if its KV cache is small."""
    backend = settings.backend
    return backend.batch_size or OPENVINO_LEAST if backend.name == "openvino" else capacity_of(settings)


def capacity_for_cache(tokens: int) -> int:
    """Rows that OpenVINO's engine runs at once with a KV cache of so many tokens."""
    return min(max(OPENVINO_LEAST, tokens // ROW_TOKENS), CAPACITY["openvino"])
