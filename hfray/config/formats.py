"""Number formats, and the values of `model.precision` that ask for them. Imports nothing, so that engines can use it."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "exact", "bf16", "fp16", "fp32"]
FORMATS = {  # names in torch, OpenVINO, safetensors and vLLM
    "fp32": ("fp32", "f32", "float32", "float"),
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "f16", "float16", "half"),
    "u8": ("u8", "uint8_t"),
    "i8": ("i8", "int8_t"),
}
SHORT = {name: short for short, names in FORMATS.items() for name in names}
KV_CACHE_PROPERTIES = ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION")


def format_name(value: object) -> str:
    """Our name of a number format: fp32, bf16 or fp16; any other format keeps its name."""
    name = str(value).lower().removeprefix("torch.").removeprefix("<type: '").removesuffix("'>")
    return SHORT.get(name, name)


def format_of(precision: str) -> str | None:
    """The number format that a precision asks for; None for auto."""
    return {"auto": None, "exact": "fp32"}.get(precision, precision)


def computing_format(told: str) -> str:
    """The format of the computation in what an engine tells, without the KV cache's: bf16 of `bf16, KV cache u8`."""
    return told.partition(",")[0]
