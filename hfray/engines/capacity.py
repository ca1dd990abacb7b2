"""How many rows an engine runs at once, where backend.batch_size does not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfray.config.engine import EngineSettings


CAPACITY = {"openvino": 256, "vllm": 256, "fake": 64}
CPU_CAPACITY, MAX_CAPACITY = 32, 256  # of transformers on a CPU, and at most on a GPU, by its memory
OPENVINO_LEAST = 128  # of OpenVINO however small its KV cache; 256 at once gave 8 % more on two cores
ROW_TOKENS = 320  # of a typical row, by which a KV cache is shared out; a full one throws rows out and starts them anew


def capacity_of(settings: EngineSettings) -> int:
    """Rows that the settings' engine will run at once; the most that it may choose, where it looks at its device
    or its KV cache."""
    backend = settings.backend
    if backend.name == "transformers":
        return backend.batch_size or (MAX_CAPACITY if settings.device.uses_gpu else CPU_CAPACITY)
    return backend.batch_size or CAPACITY[backend.name]


def least_capacity_of(settings: EngineSettings) -> int:
    """Rows that the settings' engine will run at once where its KV cache is small."""
    backend = settings.backend
    return backend.batch_size or OPENVINO_LEAST if backend.name == "openvino" else capacity_of(settings)


def capacity_for_cache(tokens: int) -> int:
    """Rows that OpenVINO's engine runs at once, where its KV cache holds so many tokens."""
    return min(max(OPENVINO_LEAST, tokens // ROW_TOKENS), CAPACITY["openvino"])
