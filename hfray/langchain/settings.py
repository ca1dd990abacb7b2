"""The settings of a local pipeline: the user's, the model's and transformers' own, in that order."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hfray.config.build import build
from hfray.config.engine import EngineSettings
from hfray.engines.load import SEQ2SEQ
from hfray.models.folder import CONTEXT_KEYS
from hfray.params import GenerationParams

logger = logging.getLogger(__name__)
TASKS = ("text-generation", *sorted(SEQ2SEQ))
FIELDS = {f.name for f in fields(GenerationParams)} | {"stop"}
# What transformers' own pipelines generate with where neither the model nor the user says (5.5: text_generation.py).
CAUSAL_DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7, "top_k": 50}
SEQ2SEQ_BEAMS = 4  # transformers 4's text2text pipelines
UNSET_MAX_LENGTH = 20  # transformers' global default, which counts as not set
# How the text is put together; not settings of the generation.
FORMAT = ("return_full_text", "clean_up_tokenization_spaces", "add_special_tokens")
# Settings that people pass to transformers' pipelines and that have no say in ours.
NO_EFFECT = {"pad_token_id", "bos_token_id", "padding", "use_cache", "cache_implementation"}
NO_EFFECT |= {"num_return_sequences", "batch_size", "num_workers", "tokenizer", "skip_special_tokens", "return_text"}
NO_EFFECT |= {"torch_dtype", "dtype", "trust_remote_code", "framework", "use_fast"}  # of the model, loaded by then
NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "top_p": 1.0, "length_penalty": 1.0}
# transformers' own name for a stop string, of which it takes the tokens.
STOP_SEQUENCE = "stop_sequence"
# Settings of a model's or pipeline's GenerationConfig that would change the text, and that the engines don't have.
NOT_CARRIED = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "guidance_scale")
OPENVINO_KWARGS = ("device", "ov_config", "revision", "trust_remote_code", "load_in_8bit")


def user_settings(model_kwargs: dict | None, pipeline_kwargs: dict | None) -> dict[str, Any]:
    """The user's settings of the generation; `model_kwargs` may hold some, as LangChain's page has it."""
    return {k: v for k, v in (model_kwargs or {}).items() if k in FIELDS} | (pipeline_kwargs or {})


def generation_params(values: dict[str, Any], causal: bool) -> GenerationParams:
    """Parameters from the merged settings of a pipeline. Raises ValueError, naming the setting."""
    if values.get("skip_special_tokens") is False:
        raise ValueError("skip_special_tokens=False: special tokens are never in the text. Leave it out.")
    sequence = values.pop(STOP_SEQUENCE, None)
    if sequence is not None:
        values["stop_strings"] = [*_listed(values.get("stop_strings")), sequence]
    if values.get("temperature") == 0:  # greedy, where transformers raises an error
        values["do_sample"] = False
    if causal and (values.pop("num_beams", None) or 1) > 1:
        raise ValueError("num_beams > 1: beam search is for sequence-to-sequence tasks here. Leave it out.")
    shortest = values.pop("min_length", None)
    if shortest and causal:
        raise ValueError(
            f"min_length={shortest}: counts the prompt, which differs from row to row. Use min_new_tokens."
        )
    if shortest:  # counts the decoder's start token
        values.setdefault("min_new_tokens", shortest - 1)
    kept = {k: v for k, v in values.items() if k not in NO_EFFECT and not (k in NEUTRAL and v == NEUTRAL[k])}
    return GenerationParams.from_mapping(kept)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a GenerationConfig that the engines have; those that they lack are told of."""
    lost = [name for name in NOT_CARRIED if config.get(name)]
    if lost:
        logger.warning("The model's generation settings %s are not applied.", ", ".join(lost))
    return {name: config[name] for name in sorted(FIELDS) if config.get(name) is not None}


def causal_defaults(folder: Path) -> dict[str, Any]:
    """transformers' precedence: the pipeline's defaults before the model's, but a model's own max_length counts."""
    path = folder / "generation_config.json"
    own = _known(json.loads(path.read_text())) if path.exists() else {}
    defaults = {**own, **CAUSAL_DEFAULTS, "top_k": own.get("top_k", CAUSAL_DEFAULTS["top_k"])}
    if own.get("max_length") not in (None, UNSET_MAX_LENGTH):
        del defaults["max_new_tokens"]
    return defaults


def seq2seq_defaults(engine: Any) -> dict[str, Any]:
    """The engine takes everything else from the model's generation_config."""
    return {} if engine.generation.num_beams else {"num_beams": SEQ2SEQ_BEAMS}


def pipeline_settings(pipe: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A transformers pipeline's settings: those that may be defaults, and those that its maker must have given."""
    config = pipe.generation_config.to_dict()
    own = {**pipe._preprocess_params, **pipe._forward_params}
    defaults, given = _known(config), {k: own[k] for k in (*FIELDS, *FORMAT, "eos_token_id") if own.get(k) is not None}
    given.setdefault("eos_token_id", config.get("eos_token_id"))
    if defaults.get("max_new_tokens") != CAUSAL_DEFAULTS["max_new_tokens"] and "max_new_tokens" in defaults:
        given.setdefault("max_new_tokens", defaults["max_new_tokens"])
    after = pipe._postprocess_params
    if "return_type" in after:
        if after["return_type"].name == "TENSORS":
            raise ValueError("return_tensors=True: a language model's answer is text. Leave it out.")
        given["return_full_text"] = after["return_type"].name == "FULL_TEXT"
    if "clean_up_tokenization_spaces" in after:
        given["clean_up_tokenization_spaces"] = after["clean_up_tokenization_spaces"]
    return defaults, given


@contextlib.contextmanager
def ending_at(model: Any, eos_token_id: int | list[int] | None) -> Iterator[None]:
    """The model with the pipeline's own end tokens, while an engine is made of it."""
    before = model.generation_config.eos_token_id
    if eos_token_id is not None:
        model.generation_config.eos_token_id = eos_token_id
    try:
        yield
    finally:
        model.generation_config.eos_token_id = before


def positions(config: Any) -> int | None:
    """Most tokens of prompt and completion, by a loaded model's config; None where it sets no bound."""
    values = (getattr(config.get_text_config(), key, None) for key in CONTEXT_KEYS)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _model(model_id: str, loading: dict[str, Any]) -> dict[str, Any]:
    named = {name: loading.pop(name) for name in ("revision", "trust_remote_code") if name in loading}
    return {"source": str(model_id), **named}


def transformers_settings(
    model_id: str, task: str, loading: dict[str, Any], device: int | None, device_map: Any
) -> EngineSettings:
    if device_map is not None and "device_map" in loading:
        raise ValueError("`device_map` is already specified in `model_kwargs`.")
    device_map = loading.pop("device_map", device_map)
    if device_map is not None and device is not None and device >= 0:
        raise ValueError(
            f"Both `device` ({device}) and `device_map` ({device_map!r}) are specified: one GPU, or a map over "
            "several. Remove one of them."
        )
    model = _model(model_id, loading)
    # As transformers loads it by itself: in the checkpoint's own dtype.
    model["kwargs"] = {"dtype": loading.pop("torch_dtype", None) or "auto", **loading}
    place = {"map": device_map} if device_map is not None else {"index": device}
    backend = {"name": "transformers"}
    return build(EngineSettings, {"model": model, "task": task, "backend": backend, "device": place})


def openvino_settings(
    model_id: str, task: str, loading: dict[str, Any], device: int | None, device_map: Any
) -> EngineSettings:
    if device_map is not None or (device is not None and device >= 0):
        warnings.warn("Please set device for OpenVINO through: `model_kwargs`", stacklevel=3)
    unknown = sorted(loading.keys() - set(OPENVINO_KWARGS))
    if unknown:
        raise ValueError(
            f"model_kwargs[{unknown[0]!r}]={loading[unknown[0]]!r}: not a setting of backend='openvino'. "
            f"Known: {', '.join(OPENVINO_KWARGS)}, and generation settings."
        )
    backend = {"name": "openvino", "ov_config": loading.pop("ov_config", None) or {}}
    if loading.pop("load_in_8bit", False):
        backend["weight_format"] = "int8"
    place = {"name": loading.pop("device", None) or "CPU"}
    return build(
        EngineSettings, {"model": _model(model_id, loading), "task": task, "backend": backend, "device": place}
    )
