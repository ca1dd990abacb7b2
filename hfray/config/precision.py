"""`model.precision`, and the options of the libraries that set a number format too: they must agree.

The value of `model.precision` reaches the engine through `hfray.engines.load`. The loaded engine tells in `precision`
what it really computes in. Its worker passes that on when it is ready, and the run keeps it in run.json, in the record
of the run and in the summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

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


# `settings` are EngineSettings, whose file imports this one.
def asked_precision(settings: Any) -> str:
    """`model.precision`; if that is auto, the number format that another option sets, or else auto."""
    if settings.model.precision != "auto":
        return settings.model.precision
    names = (format_name(value) for _, value in _options(settings))
    return next((name for name in names if name in get_args(Precision)), "auto")  # OpenVINO knows others: dynamic


def check_precision(settings: Any) -> None:
    """Check that all options agree on the number format. Raises ValueError, naming both keys."""
    precision = settings.model.precision
    chosen = [("model.precision", precision)] if precision != "auto" else []
    chosen += list(_options(settings))
    if precision == "exact":
        chosen += _inexact(settings)
    for key, value in chosen[1:]:
        first, wanted = chosen[0]
        if format_name(value) != format_of(format_name(wanted)):
            raise ValueError(f"{key}={value} contradicts {first}={wanted}. Drop one of them.")


def _options(settings: Any) -> Iterator[tuple[str, object]]:
    """(key, value) of the options that set the number format. The value "auto" means the checkpoint's own format."""
    model, backend = settings.model, settings.backend
    if model.dtype != "auto":
        yield "model.dtype", model.dtype
    yield from _given("model.kwargs", model.kwargs, ("dtype", "torch_dtype"))
    if backend.name == "openvino":
        yield from _given("backend.ov_config", backend.ov_config, ("INFERENCE_PRECISION_HINT",))
    if backend.name == "vllm":
        yield from _given("backend.options", backend.options, ("dtype",))


def _inexact(settings: Any) -> Iterator[tuple[str, object]]:
    """(key, value) of the options that `exact` forbids besides: formats of the KV cache and of the weights."""
    model, backend = settings.model, settings.backend
    yield from _given("model.kwargs", model.kwargs, ("quantization_config",))
    if backend.name == "openvino":
        if backend.weight_format not in ("auto", "fp32"):
            yield "backend.weight_format", backend.weight_format
        yield from _given("backend.ov_config", backend.ov_config, KV_CACHE_PROPERTIES)
    if backend.name == "vllm":
        yield from _given("backend.options", backend.options, ("quantization",))
        if backend.options.get("kv_cache_dtype") != "auto":  # auto: the format of the model
            yield from _given("backend.options", backend.options, ("kv_cache_dtype",))


def _given(section: str, options: Mapping[str, object], keys: Sequence[str]) -> Iterator[tuple[str, object]]:
    yield from ((f"{section}.{key}", options[key]) for key in keys if options.get(key) is not None)
