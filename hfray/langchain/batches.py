"""LangChain's methods for many inputs, so that the engine gets all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list

MAX_THREADS = 256  # of a batch with a thread per row; no engine runs more rows at once


class BatchedLLM(BaseLLM):
    """A LangChain LLM whose engine batches by itself."""

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Send all inputs to the engine at once; `max_concurrency` limits how many run at the same time."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        limit = configs[0].get("max_concurrency")
        if limit is None and not return_exceptions:
            return super().batch(inputs, config, **kwargs)
        configs[0]["max_concurrency"] = limit or min(len(inputs), MAX_THREADS)
        return Runnable.batch(self, inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """As `batch`."""
        if not inputs:
            return []
        if get_config_list(config, len(inputs))[0].get("max_concurrency") is None and not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        return await Runnable.abatch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Send all inputs to the engine at once, and yield each index with its text as it completes."""
        if not inputs:
            return
        configs = get_config_list(config, len(inputs))
        # LangChain's default is a small pool of threads, which would leave the engine partly idle.
        configs[0]["max_concurrency"] = configs[0].get("max_concurrency") or min(len(inputs), MAX_THREADS)
        options: Any = {"return_exceptions": return_exceptions, **kwargs}
        yield from super().batch_as_completed(inputs, configs, **options)
