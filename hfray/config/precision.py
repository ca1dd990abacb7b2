"""`model.precision`, and the options of the libraries that set a number format too: they must agree.

The value of `model.precision` reaches the engine through `hfray.engines.load`. The loaded engine tells in `precision`
what it really computes in. Its worker passes that on when it is ready, and the run keeps it in run.json, in the record
of the run and in the summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from hfray.config.backend import Backend, ModelSettings
from hfray.config.formats import KV_CACHE_PROPERTIES, Precision, format_name, format_of


def asked_precision(model: ModelSettings, backend: Backend) -> str:
    """`model.precision`; if that is auto, the number format that another option sets, or else auto."""
    if model.precision != "auto":
        return model.precision
    names = (format_name(value) for _, value in _options(model, backend))
    return next((name for name in names if name in get_args(Precision)), "auto")  # OpenVINO knows others: dynamic


def check_precision(model: ModelSettings, backend: Backend) -> None:
    """Check that all options agree on the number format. Raises ValueError, naming both keys."""
    precision = model.precision
    chosen: list[tuple[str, object]] = [("model.precision", precision)] if precision != "auto" else []
    chosen += list(_options(model, backend))
    if precision == "exact":
        chosen += _inexact(model, backend)
    for key, value in chosen[1:]:
        first, wanted = chosen[0]
        if format_name(value) != format_of(format_name(wanted)):
            raise ValueError(f"{key}={value} contradicts {first}={wanted}. Drop one of them.")


def _options(model: ModelSettings, backend: Backend) -> Iterator[tuple[str, object]]:
    """(key, value) of the options that set the number format. The value "auto" means the checkpoint's own format."""
    if model.dtype != "auto":
        yield "model.dtype", model.dtype
    yield from _given("model.kwargs", model.kwargs, ("dtype", "torch_dtype"))
    if backend.name == "openvino":
        yield from _given("backend.ov_config", backend.ov_config, ("INFERENCE_PRECISION_HINT",))
    if backend.name == "vllm":
        yield from _given("backend.options", backend.options, ("dtype",))


def _inexact(model: ModelSettings, backend: Backend) -> Iterator[tuple[str, object]]:
    """(key, value) of the options that `exact` forbids besides: formats of the KV cache and of the weights."""
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
