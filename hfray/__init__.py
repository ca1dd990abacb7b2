"""Batch inference for Hugging Face models: a table of prompts in, Parquet of answers out.

The public names. Python imports each of them at its first use, so that `import hfray` loads nothing heavy.

    run_batch(settings)            run a batch job; returns its summary
    load_settings(overrides)       the settings of a command line, as BatchSettings or another class
    prepare_model(settings)        the model as a local folder, downloaded and converted
    load_engine(settings)          an engine; EngineLoop(engine).submit(prompt, params) returns a handle of the answer
    HuggingFacePipeline            LangChain's class, on hfray's engines
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfray.batch.job import run_batch
    from hfray.completion import Completion, Prompt
    from hfray.config.batch import BatchSettings
    from hfray.config.compose import load_settings
    from hfray.config.engine import EngineSettings
    from hfray.engines.load import load_engine
    from hfray.errors import (
        EngineDiedError,
        JobError,
        RequestError,
        SettingsError,
        SupersededError,
        TooManyErrorsError,
        WriteError,
    )
    from hfray.inference.loop import EngineLoop
    from hfray.langchain.llm import HuggingFacePipeline
    from hfray.models.source import prepare as prepare_model
    from hfray.params import GenerationParams

__all__ = [
    "BatchSettings",
    "Completion",
    "EngineDiedError",
    "EngineLoop",
    "EngineSettings",
    "GenerationParams",
    "HuggingFacePipeline",
    "JobError",
    "Prompt",
    "RequestError",
    "SettingsError",
    "SupersededError",
    "TooManyErrorsError",
    "WriteError",
    "load_engine",
    "load_settings",
    "prepare_model",
    "run_batch",
]

_MODULES = {
    "BatchSettings": "hfray.config.batch",
    "Completion": "hfray.completion",
    "EngineLoop": "hfray.inference.loop",
    "EngineSettings": "hfray.config.engine",
    "GenerationParams": "hfray.params",
    "HuggingFacePipeline": "hfray.langchain.llm",
    "Prompt": "hfray.completion",
    "load_engine": "hfray.engines.load",
    "load_settings": "hfray.config.compose",
    "prepare_model": "hfray.models.source",
    "run_batch": "hfray.batch.job",
}
_NAMES_THERE = {"prepare_model": "prepare"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'hfray' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES.get(name, "hfray.errors")), _NAMES_THERE.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
