"""`HuggingFacePipeline` for LangChain: langchain-huggingface's class, over hfray's engines."""

from __future__ import annotations

import functools
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import ConfigDict, PrivateAttr, model_validator

from hfray.completion import Completion
from hfray.config.engine import EngineSettings
from hfray.langchain.pipeline import Call, LocalPipeline
from hfray.langchain.settings import (
    FIELDS,
    FORMAT,
    STOP_SEQUENCE,
    TASKS,
    openvino_settings,
    transformers_settings,
    user_settings,
)

DEFAULT_BATCH_SIZE = 4
MAX_THREADS = 256  # of a `batch` whose rows may fail one by one; no engine runs more rows at once
BACKENDS = ("default", "openvino")


class HuggingFacePipeline(BaseLLM):
    """A local Hugging Face model as a LangChain LLM.

    Takes what `langchain_huggingface.HuggingFacePipeline` takes. `batch` and concurrent `ainvoke`, `astream` calls
    share one engine, which batches them continuously; leaving a stream early frees its place.

    Around an existing transformers pipeline: `HuggingFacePipeline(pipeline=pipe)`; from a model's name or folder:
    `HuggingFacePipeline.from_model_id`. Generation settings come from the model, then `pipeline_kwargs`, then a
    call's own `pipeline_kwargs` or keywords (`llm.bind(max_new_tokens=20)`); temperature 0 is greedy, `stop` ends a
    text before the string.

    Raises:
        ValueError: on construction, a model, device or setting that cannot be used; on a call, a prompt at fault
            (too long for the model). In `batch(..., return_exceptions=True)` it takes its own row's place alone.
        EngineDiedError: the model failed; this object can do no more.
    """

    pipeline: Any = None
    """The transformers pipeline; for OpenVINO and sequence-to-sequence models, which have none, our own."""

    model_id: str | None = None
    """Hub id or folder; read off the pipeline where it is not given."""

    model_kwargs: dict | None = None
    """Arguments of `from_pretrained`, and generation settings."""

    pipeline_kwargs: dict | None = None
    """Generation settings, `return_full_text`, `clean_up_tokenization_spaces`."""

    batch_size: int = DEFAULT_BATCH_SIZE
    """Taken for compatibility: the engine runs as many rows at once as its memory allows."""

    model_config = ConfigDict(extra="forbid")

    _local: LocalPipeline = PrivateAttr()
    _recipe: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _model_id_of_pipeline(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("pipeline") is None:
            raise ValueError(
                "pipeline is not given. Use HuggingFacePipeline(pipeline=transformers.pipeline(...)), or "
                "HuggingFacePipeline.from_model_id(model_id, task)."
            )
        if "model_id" not in values:
            values["model_id"] = getattr(values["pipeline"].model, "name_or_path", None)
        return values

    def model_post_init(self, context: Any, /) -> None:
        """Start the engine."""
        super().model_post_init(context)
        if isinstance(self.pipeline, LocalPipeline):
            self._local = self.pipeline
        else:
            self._local = LocalPipeline.around(self.pipeline, user_settings(self.model_kwargs, self.pipeline_kwargs))

    @classmethod
    def from_model_id(
        cls,
        model_id: str,
        task: str,
        backend: str = "default",
        device: int | None = -1,
        device_map: str | dict[str, Any] | None = None,
        model_kwargs: dict | None = None,
        pipeline_kwargs: dict | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **kwargs: Any,
    ) -> HuggingFacePipeline:
        """Load a model.

        Args:
            model_id: hub id, or a local folder: Hugging Face, or for OpenVINO an IR folder (others are exported).
            task: text-generation, text2text-generation, summarization or translation.
            backend: "default" is transformers; "openvino".
            device: -1 the CPU, n the n-th GPU; not together with `device_map`.
            device_map: as accelerate's ("auto").
            model_kwargs: arguments of `from_pretrained`; for OpenVINO `device` and `ov_config`; generation settings.
            pipeline_kwargs: generation settings and `return_full_text`.
            kwargs: fields of the LangChain object (callbacks, tags, cache, ...).

        Raises:
            ValueError: model, device or a setting cannot be used; the message names it and the remedy.
        """
        recipe = {name: value for name, value in locals().items() if name not in ("cls", "kwargs")} | kwargs
        loading = {k: v for k, v in (model_kwargs or {}).items() if k not in FIELDS}
        given = user_settings(model_kwargs, pipeline_kwargs)
        if backend == "ipex":
            warnings.warn("backend='ipex' is gone, as from langchain-huggingface; using 'default'.", stacklevel=2)
            backend = "default"
        if task not in TASKS:
            raise ValueError(f"Got invalid task {task}, currently only {TASKS} are supported")
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}: must be one of {', '.join(BACKENDS)}.")
        settings_of = openvino_settings if backend == "openvino" else transformers_settings
        settings = settings_of(model_id, task, loading, device, device_map)
        if backend == "default" and task == "text-generation":
            pipe: Any = _transformers_pipeline(settings, given)
        else:
            pipe = LocalPipeline.load(settings, given)
        llm = cls(
            pipeline=pipe,
            model_id=model_id,
            model_kwargs=model_kwargs or {},
            pipeline_kwargs=pipeline_kwargs or {},
            batch_size=batch_size,
            **kwargs,
        )
        llm._recipe = recipe
        return llm

    def __reduce__(self) -> Any:
        if self._recipe is None:
            raise TypeError("made around a pipeline, this cannot be pickled: use HuggingFacePipeline.from_model_id")
        return functools.partial(type(self).from_model_id, **self._recipe), ()

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "model_id": self.model_id,
            "model_kwargs": self.model_kwargs,
            "pipeline_kwargs": self.pipeline_kwargs,
        }

    @property
    def _llm_type(self) -> str:
        return "huggingface_pipeline"

    # --- calls -------------------------------------------------------------------------------------------------

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """All inputs at once through the engine; `max_concurrency` bounds how many are under way at any time."""
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

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call, _ = self._call(stop, kwargs)
        return _result(prompts, call, self._local.complete(prompts, call))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call, _ = self._call(stop, kwargs)
        return _result(prompts, call, await self._local.acomplete(prompts, call))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        call, skip_prompt = self._call(stop, kwargs)
        if skip_prompt is False:
            yield GenerationChunk(text=prompt)
        for piece in self._local.stream(prompt, call):
            chunk = _chunk(piece)
            if run_manager and chunk.text:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call, skip_prompt = self._call(stop, kwargs)
        if skip_prompt is False:
            yield GenerationChunk(text=prompt)
        pieces = self._local.astream(prompt, call)
        try:
            async for piece in pieces:
                chunk = _chunk(piece)
                if run_manager and chunk.text:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            await pieces.aclose()  # an abandoned async generator is else closed at some later time

    def _call(self, stop: list[str] | None, kwargs: dict[str, Any]) -> tuple[Call, bool | None]:
        """The settings of a call from its keywords, and its `skip_prompt`."""
        own = dict(kwargs)
        given = dict(own.pop("pipeline_kwargs", None) or {})
        skip_prompt = own.pop("skip_prompt", None)
        if skip_prompt:
            given["return_full_text"] = False
        return self._local.call({**given, **own}, stop), skip_prompt


def _result(prompts: list[str], call: Call, completions: list[Completion]) -> LLMResult:
    rows = zip(prompts, completions, strict=True)
    return LLMResult(generations=[[Generation(text=call.text(p, c), generation_info=_info(c))] for p, c in rows])


def _chunk(piece: str | Completion) -> GenerationChunk:
    if isinstance(piece, Completion):
        return GenerationChunk(text="", generation_info=_info(piece))
    return GenerationChunk(text=piece)


def _info(completion: Completion) -> dict[str, Any]:
    names = ("finish_reason", "num_prompt_tokens", "num_generated_tokens")
    return {name: getattr(completion, name) for name in names}


def _transformers_pipeline(settings: EngineSettings, given: dict[str, Any]) -> Any:
    """The settings' model in a transformers pipeline, so that `llm.pipeline` is what LangChain's is."""
    from transformers import pipeline

    from hfray.engines.load import load_engine
    from hfray.models.source import prepare

    engine = load_engine(settings, folder=prepare(settings))
    tokenizer, options = engine.tokenizer.hf, dict(given)
    if tokenizer.pad_token is None:
        tokenizer.pad_token_id = engine.model.config.eos_token_id
    for name in ("stop", "seed", STOP_SEQUENCE, *FORMAT[1:]):
        options.pop(name, None)  # ours alone, or applied by us
    if options.get("temperature") == 0:
        options["do_sample"] = False
        del options["temperature"]
    return pipeline(settings.task, model=engine.model, tokenizer=tokenizer, **options)
