"""How many rows an engine runs at once, where backend.batch_size does not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfray.config import EngineSettings

CAPACITY = {"openvino": 128, "vllm": 256, "fake": 64}
CPU_CAPACITY, MAX_CAPACITY = 32, 256  # of transformers on a CPU, and at most on a GPU, by its memory


def capacity_of(settings: EngineSettings) -> int:
    """Rows that the settings' engine will run at once; the most that it may choose, where it looks at its device."""
    backend = settings.backend
    if backend.name == "transformers":
        return backend.batch_size or (MAX_CAPACITY if settings.device.uses_gpu else CPU_CAPACITY)
    return backend.batch_size or CAPACITY[backend.name]
