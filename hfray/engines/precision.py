"""What this machine computes fast in 16 bits, and what a loaded model computes in: fp32, bf16 or fp16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfray.config.formats import KV_CACHE_PROPERTIES, format_name, format_of

if TYPE_CHECKING:
    from openvino import CompiledModel

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}  # a CPU without them converts bf16 to fp32 for every product
FP16_CAPABILITY = (7, 0)  # CUDA GPUs since Volta compute fp16 faster than fp32, all of them
TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
OPENVINO = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
ASKS_PRECISION = ("INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT", *KV_CACHE_PROPERTIES)
PRODUCTS = ("FullyConnected", "MatMul")  # matrix products in the CPU's graph
CHANNELS = 64  # of the one layer that is compiled to ask a device


def cpu_computes_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has instructions for bf16 (AVX512_BF16 or AMX); False if the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return not BF16_FLAGS.isdisjoint(flags.split())


def gpu_formats() -> list[str]:
    """The 16-bit formats that all visible CUDA GPUs compute fast, the preferred one first."""
    import torch

    found = ["bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return [*found, "fp16"] if min(capabilities) >= FP16_CAPABILITY else found


def torch_dtype(precision: str, stored: str | None, *, on_cpu: bool, fast: Sequence[str] | None = None) -> str:
    """torch's name of the format to load a model in.

    Args:
        precision: a value of `model.precision`.
        stored: the checkpoint's own format (`hfray.models.folder.stored_dtype`).
        fast: the 16-bit formats that the GPU computes fast, the preferred one first; None: torch says.
    """
    wanted = format_of(precision)
    if wanted is None and on_cpu:
        wanted = "bf16" if cpu_computes_bf16() else "fp32"
    if wanted is None:
        fast, own = gpu_formats() if fast is None else fast, format_name(stored)
        wanted = own if own in fast else next(iter(fast), "fp32")
    return TORCH[wanted]


def precision_of(model: Any) -> str:
    """What a model of torch computes in: the format of most of its floating-point weights."""
    sizes = Counter[str]()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[format_name(parameter.dtype)] += parameter.numel()
    return sizes.most_common(1)[0][0] if sizes else format_name(model.dtype)


def openvino_properties(precision: str, device: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """OpenVINO's properties for a precision; those that are given stay as they are.

    On a CPU the KV cache gets the format of the computation. Otherwise the IR folder or OpenVINO would choose it, down
    to 8 bits.
    """
    found, wanted = dict(properties), format_of(precision)
    if wanted is not None:
        found.setdefault("INFERENCE_PRECISION_HINT", OPENVINO[wanted])
    if not _kv_cache_keys(found) and (device.upper().startswith("CPU") or precision == "exact"):
        found["KV_CACHE_PRECISION"] = OPENVINO[_computing_format(compile_layer(device, found))]
    return found


def compile_layer(device: str, properties: Mapping[str, Any]) -> CompiledModel:
    """One linear layer, compiled as a model with these properties would be.

    OpenVINO GenAI does not hand out its compiled model, so we ask this layer in its place: the device chooses the
    formats from its abilities and the properties.
    """
    import numpy as np
    import openvino
    from openvino import opset13

    rows = opset13.parameter([-1, CHANNELS], np.float32)
    weights = opset13.constant(np.ones((CHANNELS, CHANNELS), np.float32))
    model: Any = openvino.Model  # its type stub does not bind
    layer = model([opset13.matmul(rows, weights, False, True)], [rows], "layer")
    asked = {key: value for key, value in properties.items() if key in ASKS_PRECISION}
    if device.upper().startswith("CPU"):
        asked |= {"ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": 1}  # pinning would bind the calling thread
    return openvino.Core().compile_model(layer, device, asked)


def precision_of_compiled(compiled: CompiledModel, properties: Mapping[str, Any]) -> str:
    """What a compiled model computes in, as `Engine.precision`.

    Args:
        properties: those that it was compiled with; if they set no format of the KV cache, the model's files may.
    """
    computes = _computing_format(compiled)
    kept = {format_name(compiled.get_property(key)) for key in _kv_cache_keys(properties)} - {computes}
    return f"{computes}, KV cache {' and '.join(sorted(kept))}" if kept else computes


def _computing_format(compiled: CompiledModel) -> str:
    """The format of most matrix products of the graph that the device runs, or else of the device's hint."""
    nodes = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    products = Counter(
        format_name(node["runtimePrecision"].astype(str)) for node in nodes if node["layerType"].astype(str) in PRODUCTS
    )
    if products:
        return products.most_common(1)[0][0]
    return format_name(compiled.get_property("INFERENCE_PRECISION_HINT"))


def _kv_cache_keys(properties: Mapping[str, Any]) -> list[str]:
    return [key for key in KV_CACHE_PROPERTIES if key in properties]
