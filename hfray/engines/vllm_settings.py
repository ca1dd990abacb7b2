"""vLLM's `EngineArgs` as hfray sets them. Imports no vLLM, which is installed in few environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfray.config.formats import format_of
from hfray.engines import vllm_process
from hfray.models.folder import read_config

CPU_KV_CACHE_GIB = 4.0  # vLLM's choice is 92 % of the machine's memory


def engine_arguments(
    *, on_cpu: bool, capacity: int | None, kv_cache_gib: float | None, gpu_share: float, memory: float
) -> dict[str, Any]:
    """The `EngineArgs` that hfray sets, where it does not leave the choice to vLLM.

    Args:
        kv_cache_gib: size of the KV cache; None: 4 on a CPU, what the memory share leaves on a GPU.
        memory: the share of a GPU's memory that vLLM takes by default.
    """
    arguments: dict[str, Any] = {
        "generation_config": "vllm",  # the request alone decides about sampling
        "disable_log_stats": True,  # hfray counts itself
        "worker_extension_cls": f"{vllm_process.__name__}.{vllm_process.WorkerExtension.__name__}",
    }
    if on_cpu or kv_cache_gib:
        arguments["kv_cache_memory_bytes"] = int((kv_cache_gib or CPU_KV_CACHE_GIB) * (1 << 30))
    if on_cpu:  # a seeded row with chunked prefill crashes vLLM: torch's CPU generators cannot be rewound
        arguments["enable_chunked_prefill"] = False
    if capacity is not None:
        arguments["max_num_seqs"] = capacity
    if gpu_share < 1 and not on_cpu:
        arguments["gpu_memory_utilization"] = gpu_share * memory
    return arguments


def check_quantized(folder: Path, precision: str) -> None:
    """Raise ValueError if fp32 is asked of a checkpoint with quantized weights."""
    quantization = read_config(folder).get("quantization_config")
    if quantization and format_of(precision) == "fp32":
        raise ValueError(
            f"model.precision={precision}: the weights of model.source={folder} are quantized "
            f"({quantization.get('quant_method')}). Use model.precision=auto, or the model's original weights."
        )
