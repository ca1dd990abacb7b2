"""Batch inference for Hugging Face models: a table of prompts in, Parquet of answers out.

The names below are imported when they are first used, so that `import hfray` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfray.batch.job import run_batch
    from hfray.engines.load import load_engine
    from hfray.langchain.llm import HuggingFacePipeline

__all__ = ["HuggingFacePipeline", "load_engine", "run_batch"]

_HOMES = {
    "HuggingFacePipeline": "hfray.langchain.llm",
    "load_engine": "hfray.engines.load",
    "run_batch": "hfray.batch.job",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hfray' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
