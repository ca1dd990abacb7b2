"""Load a model once, as an engine and as the transformers pipeline around the same model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from hfray.config.backend import OpenVINOBackend
from hfray.config.build import build
from hfray.config.engine import EngineSettings
from hfray.engines.capacity import capacity_of
from hfray.engines.load import SEQ2SEQ, load_engine
from hfray.langchain.pipeline import LocalPipeline
from hfray.langchain.settings import (
    OURS_ALONE,
    TASKS,
    causal_defaults,
    pipeline_settings,
    positions,
    seq2seq_defaults,
)
from hfray.models.folder import end_token_ids
from hfray.models.source import HUB_KWARGS, prepare

if TYPE_CHECKING:
    from hfray.engines.torch.causal import TransformersEngine
    from hfray.engines.torch.checkpoint import TransformersTokenizer

OPENVINO_KWARGS = ("device", "ov_config", "revision", "trust_remote_code", "load_in_8bit", *HUB_KWARGS)


def load(settings: EngineSettings, given: Mapping[str, Any], batch_size: int | None) -> tuple[LocalPipeline, Any]:
    """Load a model once.

    Args:
        given: the user's generation settings.
        batch_size: the largest number of rows to run at once; None leaves the number to the engine.

    Returns:
        Our pipeline, and the pipeline object for the user: transformers' own, around the same model and tokenizer,
        for a causal model of transformers; otherwise our pipeline again.

    Raises:
        ValueError: the model or a setting cannot be used; the message names it.
    """
    if batch_size is not None and isinstance(settings.backend, OpenVINOBackend):
        capacity = min(batch_size, capacity_of(settings))
        settings = replace(settings, backend=replace(settings.backend, batch_size=capacity))
    folder = prepare(settings)
    engine = load_engine(settings, folder=folder)
    if batch_size is not None:
        engine.capacity = min(engine.capacity, batch_size)
    if settings.task in SEQ2SEQ:
        local = LocalPipeline(engine, settings.task, seq2seq_defaults(engine), given)
        return local, local
    if settings.backend.name == "transformers":
        causal = cast("TransformersEngine", engine)
        pipe = transformers_pipeline(causal, given)
        return _around_engine(causal, pipe, given), pipe
    local = LocalPipeline(engine, settings.task, causal_defaults(folder), given)
    return local, local


def from_pipeline(pipe: Any, given: Mapping[str, Any], batch_size: int | None) -> LocalPipeline:
    """An engine around the model of a transformers pipeline, with the settings of that pipeline. Raises ValueError."""
    from hfray.engines.torch.causal import TransformersEngine
    from hfray.engines.torch.checkpoint import TransformersTokenizer
    from hfray.engines.torch.seq2seq import Seq2SeqEngine

    if pipe.task not in TASKS:
        raise ValueError(f"Got invalid task {pipe.task}, currently only {TASKS} are supported")
    if type(pipe.model).__module__.startswith("optimum."):
        raise ValueError(
            f"pipeline.model is a {type(pipe.model).__name__}: hfray cannot take an OpenVINO model out of a pipeline. "
            "Use HuggingFacePipeline.from_model_id(folder, backend='openvino')."
        )
    if pipe.model.config.is_encoder_decoder:
        engine = Seq2SeqEngine(pipe.model, pipe.tokenizer, task=pipe.task, context=None)
    else:
        tokenizer = TransformersTokenizer(pipe.tokenizer)
        engine = TransformersEngine(pipe.model, tokenizer, context=positions(pipe.model.config))
    if batch_size is not None:
        engine.capacity = min(engine.capacity, batch_size)
    if isinstance(engine, Seq2SeqEngine):
        return LocalPipeline(engine, pipe.task, seq2seq_defaults(engine), given)
    return _around_engine(engine, pipe, given)


def _around_engine(engine: TransformersEngine, pipe: Any, given: Mapping[str, Any]) -> LocalPipeline:
    """Our pipeline with the settings and the end tokens of a transformers pipeline around the same model."""
    defaults, own = pipeline_settings(pipe)
    ids = end_token_ids(own.pop("eos_token_id", None))
    if ids:
        engine.end_at(ids)
    return LocalPipeline(engine, pipe.task, defaults, {**own, **given})


def transformers_pipeline(engine: TransformersEngine, given: Mapping[str, Any]) -> Any:
    """A transformers pipeline around the engine's model and tokenizer, for users that read `llm.pipeline`."""
    from transformers import pipeline

    model: Any = engine.model
    tokenizer: Any = cast("TransformersTokenizer", engine.tokenizer).hf
    options = dict(given)
    if tokenizer.pad_token is None:
        tokenizer.pad_token_id = min(engine.end_ids, default=None)
    for name in OURS_ALONE:
        options.pop(name, None)
    if options.get("temperature") == 0:
        options["do_sample"] = False
        del options["temperature"]
    # Without a device, transformers moves the model to the first GPU. accelerate has placed a mapped model already.
    device = model.device if getattr(model, "hf_device_map", None) is None else None
    return pipeline("text-generation", model=model, tokenizer=tokenizer, device=device, **options)


def transformers_settings(
    model_id: str,
    task: str,
    loading: Mapping[str, Any],
    device: int | None,
    device_map: Any,
    precision: str | None = None,
) -> EngineSettings:
    """Settings of an engine from the arguments of `from_model_id`. Raises ValueError."""
    loading = dict(loading)
    if device_map is not None and "device_map" in loading:
        raise ValueError("`device_map` is already specified in `model_kwargs`.")
    device_map = loading.pop("device_map", device_map)
    if device_map is not None and device is not None and device >= 0:
        raise ValueError(
            f"Both `device` ({device}) and `device_map` ({device_map!r}) are specified: one GPU, or a map over "
            "several. Remove one of them."
        )
    model = _model(model_id, loading, precision)
    place = {"map": device_map} if device_map is not None else {"index": device}
    dtype = loading.pop("torch_dtype", None)

    def build_with(kwargs: Mapping[str, Any]) -> EngineSettings:
        values = {"model": model | {"kwargs": dict(kwargs)}, "task": task, "backend": {"name": "transformers"}}
        return build(EngineSettings, values | {"device": place})

    settings = build_with(loading if dtype is None else {"dtype": dtype, **loading})
    if dtype is None and precision is None and not settings.device.uses_gpu:
        return build_with({"dtype": "auto", **loading})  # as transformers chooses; on a GPU a job's precision=auto does
    return settings


def settings_of(
    backend: str,
    model_id: str,
    task: str,
    loading: Mapping[str, Any],
    device: int | None,
    device_map: Any,
    precision: str | None,
) -> EngineSettings:
    """Settings of an engine from the arguments of `from_model_id`. Raises ValueError."""
    if backend == "ipex":
        warnings.warn("backend='ipex' no longer exists, as in langchain-huggingface. Using 'default'.", stacklevel=3)
        backend = "default"
    if task not in TASKS:
        raise ValueError(f"Got invalid task {task}, currently only {TASKS} are supported")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: must be one of {', '.join(BACKENDS)}.")
    return BACKENDS[backend](model_id, task, loading, device, device_map, precision)


def openvino_settings(
    model_id: str,
    task: str,
    loading: Mapping[str, Any],
    device: int | None,
    device_map: Any,
    precision: str | None = None,
) -> EngineSettings:
    """Settings of an OpenVINO engine from the arguments of `from_model_id`. Raises ValueError."""
    loading = dict(loading)
    if device_map is not None or (device is not None and device >= 0):
        warnings.warn("Please set device for OpenVINO through: `model_kwargs`", stacklevel=4)
    unknown = sorted(loading.keys() - set(OPENVINO_KWARGS))
    if unknown:
        raise ValueError(
            f"model_kwargs[{unknown[0]!r}]={loading[unknown[0]]!r}: not a setting of backend='openvino'. "
            f"Known: {', '.join(OPENVINO_KWARGS)}, and generation settings."
        )
    backend: dict[str, Any] = {"name": "openvino", "ov_config": loading.pop("ov_config", None) or {}}
    if loading.pop("load_in_8bit", False):
        backend["weight_format"] = "int8"
    place = {"name": loading.pop("device", None) or "CPU"}
    model = {**_model(model_id, loading, precision), "kwargs": loading}
    return build(EngineSettings, {"model": model, "task": task, "backend": backend, "device": place})


def _model(model_id: str, loading: dict[str, Any], precision: str | None) -> dict[str, Any]:
    named = {name: loading.pop(name) for name in ("revision", "trust_remote_code") if name in loading}
    return {"source": str(model_id), "precision": precision or "auto", **named}


BACKENDS = {"default": transformers_settings, "openvino": openvino_settings}
