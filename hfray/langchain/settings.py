"""Generation settings: the user's, the model's and transformers' own, in that order of precedence."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfray.config.response import ResponseSettings
from hfray.engines.load import SEQ2SEQ
from hfray.models.folder import CONTEXT_KEYS
from hfray.params import GenerationParams
from hfray.response import ResponseFormat

logger = logging.getLogger(__name__)
TASKS = ("text-generation", *sorted(SEQ2SEQ))
FIELDS = {*GenerationParams.names(), "stop"}
# The defaults of transformers' own pipelines (5.5: text_generation.py), if neither the model nor the user sets them.
CAUSAL_DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7, "top_k": 50}
SEQ2SEQ_BEAMS = 4  # as in transformers 4's text2text pipelines
UNSET_MAX_LENGTH = 20  # transformers' global default, which means "not set"
# How the text is assembled; not generation settings.
FORMAT = ("return_full_text", "clean_up_tokenization_spaces", "add_special_tokens", "prefix")
# Another name for a stop string. transformers compares its tokens instead of its text.
STOP_SEQUENCE = "stop_sequence"
# Settings that we apply ourselves, and that a transformers pipeline does not know or would apply differently.
OURS_ALONE = ("stop", "seed", STOP_SEQUENCE, "clean_up_tokenization_spaces", "add_special_tokens", "logprobs")
# Settings for transformers' pipelines that change nothing here: batching, padding, and how the model is loaded.
NO_EFFECT = {"pad_token_id", "bos_token_id", "padding", "use_cache", "cache_implementation", "prefix_length"}
NO_EFFECT |= {"num_return_sequences", "batch_size", "num_workers", "tokenizer", "skip_special_tokens", "return_text"}
NO_EFFECT |= {"torch_dtype", "dtype", "trust_remote_code", "framework", "use_fast"}
# Settings that the engines do not support, with their neutral value, which changes nothing.
NEUTRAL: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    "truncation": False,
    "typical_p": 1.0,
}
# Settings that the engines do not support. They change nothing only if they are empty.
UNSUPPORTED = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "max_time", "top_h")
UNSUPPORTED += ("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "constraints")
UNSUPPORTED += ("force_words_ids", "watermarking_config", "dola_layers", "stopping_criteria", "logits_processor")
# Supported settings, with a neutral value that some engine would refuse.
DEFAULTS = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "top_p": 1.0, "length_penalty": 1.0}


def user_settings(model_kwargs: dict | None, pipeline_kwargs: dict | None) -> dict[str, Any]:
    """The user's generation settings. LangChain's page puts some of them into `model_kwargs`."""
    return {k: v for k, v in (model_kwargs or {}).items() if k in FIELDS} | (pipeline_kwargs or {})


def generation_params(values: Mapping[str, Any], causal: bool) -> GenerationParams:
    """Parameters from the merged settings of a pipeline. Raises ValueError, naming the setting."""
    values = {name: value for name, value in values.items() if not is_neutral(name, value)}
    if values.get("skip_special_tokens") is False:
        raise ValueError("skip_special_tokens=False: the text never contains special tokens. Remove the setting.")
    if causal and values.get("renormalize_logits"):  # changes nothing without beam search
        del values["renormalize_logits"]
    unsupported = sorted(values.keys() & {*NEUTRAL, *UNSUPPORTED})
    if unsupported:
        name = unsupported[0]
        raise ValueError(f"{name}={values[name]!r}: hfray's engines do not support this setting. Remove it.")
    sequence = values.pop(STOP_SEQUENCE, None)
    if sequence is not None:
        stops = values.get("stop_strings") or ()
        values["stop_strings"] = [*([stops] if isinstance(stops, str) else stops), sequence]
    if values.get("temperature") == 0:  # greedy; transformers raises an error
        values["do_sample"] = False
    if causal and (values.pop("num_beams", None) or 1) > 1:
        raise ValueError("num_beams > 1: beam search runs for sequence-to-sequence tasks only. Remove the setting.")
    shortest = values.pop("min_length", None)
    if shortest and causal:
        raise ValueError(
            f"min_length={shortest}: also counts the prompt, and prompts differ in length. Use min_new_tokens."
        )
    if shortest:  # counts the decoder's start token
        values.setdefault("min_new_tokens", shortest - 1)
    return GenerationParams.from_mapping({name: value for name, value in values.items() if name not in NO_EFFECT})


def response_form(values: dict[str, Any]) -> ResponseFormat | None:
    """The form of the answers, taken out of the merged settings: `response_schema`, `response_retries` (default 1).

    Raises:
        ValueError: the schema is no JSON Schema.
    """
    given, retries = values.pop("response_schema", None), values.pop("response_retries", 1)
    return None if given is None else ResponseSettings(schema=given, retries=retries).format


def is_neutral(name: str, value: Any) -> bool:
    """Whether a setting has the value that leaves the text as it is."""
    if value is None or (name in UNSUPPORTED and not value):
        return True
    neutral = {**NEUTRAL, **DEFAULTS}
    return name in neutral and value == neutral[name]


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """The supported fields of a model's GenerationConfig. Logs a warning about those that are not applied."""
    lost = [n for n in (*UNSUPPORTED, *NEUTRAL) if n in config and not is_neutral(n, config[n])]
    if lost:
        logger.warning("The model's generation settings %s are not applied.", ", ".join(lost))
    return {name: config[name] for name in sorted(FIELDS) if config.get(name) is not None}


def causal_defaults(folder: Path) -> dict[str, Any]:
    """The defaults of a folder's model, as transformers' pipeline merges them.

    The pipeline's defaults win over the model's, except that a model's own max_length replaces max_new_tokens.
    """
    path = folder / "generation_config.json"
    own = _known(json.loads(path.read_text())) if path.exists() else {}
    defaults = {**own, **CAUSAL_DEFAULTS, "top_k": own.get("top_k", CAUSAL_DEFAULTS["top_k"])}
    if own.get("max_length") not in (None, UNSET_MAX_LENGTH):
        del defaults["max_new_tokens"]
    return defaults


def seq2seq_defaults(engine: Any) -> dict[str, Any]:
    """The number of beams, if the model sets none. The engine reads all other defaults from the model."""
    return {} if engine.generation.num_beams else {"num_beams": SEQ2SEQ_BEAMS}


def pipeline_settings(pipe: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a transformers pipeline: the defaults, and what the user gave when creating the pipeline.

    Raises:
        ValueError: the user gave the pipeline a setting that the engines do not support.
    """
    config, model_config = pipe.generation_config.to_dict(), pipe.model.generation_config.to_dict()
    given = {k: v for k, v in {**pipe._preprocess_params, **pipe._forward_params}.items() if v is not None}
    for name in (*UNSUPPORTED, *NEUTRAL):  # transformers moves these from the arguments into the config
        if name in config and config[name] != model_config.get(name) and not is_neutral(name, config[name]):
            given[name] = config[name]
    unsupported = [name for name in given if name in (*UNSUPPORTED, *NEUTRAL)]
    defaults = _known({name: value for name, value in config.items() if name not in unsupported})
    given.setdefault("eos_token_id", config.get("eos_token_id"))
    if defaults.get("max_new_tokens") != CAUSAL_DEFAULTS["max_new_tokens"] and "max_new_tokens" in defaults:
        given.setdefault("max_new_tokens", defaults["max_new_tokens"])
    after = pipe._postprocess_params
    if "return_type" in after:
        if after["return_type"].name == "TENSORS":
            raise ValueError("return_tensors=True: a language model's answer is text. Remove the setting.")
        given["return_full_text"] = after["return_type"].name == "FULL_TEXT"
    for name in ("clean_up_tokenization_spaces", "skip_special_tokens"):
        if name in after:
            given[name] = after[name]
    return defaults, given


def positions(config: Any) -> int | None:
    """The largest number of prompt and completion tokens, by the config of a loaded model; None: no limit."""
    values = (getattr(config.get_text_config(), key, None) for key in CONTEXT_KEYS)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
