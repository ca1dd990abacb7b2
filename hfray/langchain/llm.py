"""`HuggingFacePipeline` for LangChain: langchain-huggingface's class, over hfray's engines."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.outputs import GenerationChunk, LLMResult
from pydantic import ConfigDict, PrivateAttr, model_validator

from hfray.langchain.batches import BatchedLLM
from hfray.langchain.cachekey import call_settings, identified_by
from hfray.langchain.call import Call
from hfray.langchain.loading import from_pipeline, load, settings_of
from hfray.langchain.pipeline import LocalPipeline
from hfray.langchain.results import achunks, chunks, result
from hfray.langchain.settings import FIELDS, TASKS, user_settings

DEFAULT_BATCH_SIZE = 4
DEFAULT_MODEL_ID = "gpt2"  # as in langchain-huggingface
LOADING = threading.Lock()  # threads that call a new object at once load its model once


class HuggingFacePipeline(BatchedLLM):
    """A local Hugging Face model as a LangChain LLM.

    Accepts the arguments of `langchain_huggingface.HuggingFacePipeline`. All calls share one engine, which batches
    `batch` and concurrent `ainvoke` and `astream` calls continuously. Closing a stream early frees its slot.

    Create it around a transformers pipeline, `HuggingFacePipeline(pipeline=pipe)`, or from the name or folder of a
    model, `HuggingFacePipeline.from_model_id`. Generation settings come from the model, then from `pipeline_kwargs`,
    then from the call's own `pipeline_kwargs` or keywords (`llm.bind(max_new_tokens=20)`). Temperature 0 is greedy.
    `stop` ends a text before the stop string.

    Raises:
        ValueError: when creating, the model, the device or a setting cannot be used. When calling, a prompt is too
            long for the model; `batch(..., return_exceptions=True)` returns the error in place of that row.
        EngineDiedError: the model failed. The object cannot be used any more.
    """

    pipeline: Any = None
    """The transformers pipeline. For OpenVINO and sequence-to-sequence models, our own pipeline object.

    Without one, the first call loads `model_id` for text generation."""

    model_id: str | None = None
    """Hub id or folder. Default: the name of the pipeline's model, or gpt2."""

    model_kwargs: dict | None = None
    """Arguments of `from_pretrained`, and generation settings."""

    pipeline_kwargs: dict | None = None
    """Generation settings, `return_full_text`, `clean_up_tokenization_spaces`, `prefix`."""

    batch_size: int = DEFAULT_BATCH_SIZE
    """The largest number of rows to run at once, if set. Otherwise the engine runs as many as its memory allows."""

    model_config = ConfigDict(extra="forbid")

    _started: LocalPipeline | None = PrivateAttr(default=None)
    _recipe: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _model_id_of_pipeline(cls, values: dict[str, Any]) -> dict[str, Any]:
        pipe = values.get("pipeline")
        if values.get("model_id") is None:
            values["model_id"] = DEFAULT_MODEL_ID if pipe is None else getattr(pipe.model, "name_or_path", None)
        return values

    def model_post_init(self, context: Any, /) -> None:
        """Start the engine, if there is a pipeline."""
        super().model_post_init(context)
        if isinstance(self.pipeline, LocalPipeline):
            self._started = self.pipeline
        elif self.pipeline is not None:
            given = user_settings(self.model_kwargs, self.pipeline_kwargs)
            self._started = from_pipeline(self.pipeline, given, self._cap)

    @property
    def _cap(self) -> int | None:
        return self.batch_size if "batch_size" in self.model_fields_set else None

    @property
    def _local(self) -> LocalPipeline:
        """The engine. Without a pipeline, the first use loads `model_id` for text generation."""
        if self._started is None:
            with LOADING:
                if self._started is None:
                    loaded = self.from_model_id(
                        str(self.model_id),
                        TASKS[0],
                        model_kwargs=self.model_kwargs,
                        pipeline_kwargs=self.pipeline_kwargs,
                        batch_size=self._cap,
                    )
                    self.pipeline, self._recipe, self._started = loaded.pipeline, loaded._recipe, loaded._started
        assert self._started is not None  # set above
        return self._started

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
        batch_size: int | None = None,
        precision: str | None = None,
        **kwargs: Any,
    ) -> HuggingFacePipeline:
        """Load a model.

        Args:
            model_id: hub id, or a local folder: Hugging Face, or an OpenVINO IR folder. For OpenVINO, a Hugging Face
                model is exported first.
            task: text-generation, text2text-generation, summarization or translation.
            backend: "default" is transformers; "openvino".
            device: -1 is the CPU, n is the n-th GPU. Not together with `device_map`.
            device_map: as in accelerate ("auto").
            model_kwargs: arguments of `from_pretrained` (`token`, `cache_dir` and `local_files_only` also apply to the
                download); for OpenVINO also `device` and `ov_config`; generation settings.
            pipeline_kwargs: generation settings and `return_full_text`.
            batch_size: the largest number of rows to run at once. Default: as many as the memory allows.
            precision: as `model.precision` of a job: auto, exact, bf16, fp16 or fp32. Default: the dtype in
                `model_kwargs`, or else the checkpoint's own on a CPU, and auto on a GPU; for OpenVINO auto.
            kwargs: fields of the LangChain object (callbacks, tags, cache, ...).

        Raises:
            ValueError: the model, the device or a setting cannot be used; the message names it and the remedy.
        """
        recipe = {name: value for name, value in locals().items() if name not in ("cls", "kwargs")}
        loading = {k: v for k, v in (model_kwargs or {}).items() if k not in FIELDS}
        given = user_settings(model_kwargs, pipeline_kwargs)
        settings = settings_of(backend, model_id, task, loading, device, device_map, precision)
        local, pipe = load(settings, given, batch_size)
        fields = {"model_id": model_id, "model_kwargs": model_kwargs or {}, "pipeline_kwargs": pipeline_kwargs or {}}
        cap = {} if batch_size is None else {"batch_size": batch_size}
        llm = cls(pipeline=local, **fields, **cap, **kwargs)
        llm.pipeline, llm._recipe = pipe, recipe
        return llm

    def __reduce__(self) -> Any:
        """Pickling stores how to load the model, and the fields that were set since."""
        if self._recipe is None:
            raise TypeError(
                "A HuggingFacePipeline around a pipeline cannot be pickled. Use HuggingFacePipeline.from_model_id."
            )
        fields = {name: getattr(self, name) for name in self.model_fields_set if name != "pipeline"}
        return _reload, (type(self), self._recipe, fields)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> HuggingFacePipeline:
        """A copy that shares the model and the engine."""
        memo = {} if memo is None else memo
        memo |= {id(self.pipeline): self.pipeline, id(self._started): self._started}
        return super().__deepcopy__(memo)

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        identity = {
            "model_id": self.model_id,
            "model_kwargs": self.model_kwargs,
            "pipeline_kwargs": self.pipeline_kwargs,
        }
        if self._recipe is not None and self._recipe["precision"] is not None:
            identity["precision"] = self._recipe["precision"]
        own = call_settings()
        return {**identity, "call": own} if own else identity

    @property
    def _llm_type(self) -> str:
        return "huggingface_pipeline"

    # --- calls -------------------------------------------------------------------------------------------------

    def generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        """As LangChain's; the call's own settings become part of the key of LangChain's cache."""
        with identified_by(kwargs):
            return super().generate(prompts, *args, **kwargs)

    async def agenerate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        """As `generate`."""
        with identified_by(kwargs):
            return await super().agenerate(prompts, *args, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call, _ = self._call(stop, kwargs)
        return result(self._local, call, prompts, self._local.complete(prompts, call))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call, _ = self._call(stop, kwargs)
        return result(self._local, call, prompts, await self._local.acomplete(prompts, call))

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
        for chunk in chunks(self._local, prompt, call):
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
        # Closed here: Python closes an abandoned async generator only at some later time.
        async with contextlib.aclosing(achunks(self._local, prompt, call)) as stream:
            async for chunk in stream:
                if run_manager and chunk.text:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _call(self, stop: list[str] | None, kwargs: dict[str, Any]) -> tuple[Call, bool | None]:
        """The settings of a call from its keywords, and its `skip_prompt`."""
        own = dict(kwargs)
        given = user_settings(
            self.model_kwargs, self.pipeline_kwargs
        )  # the object's, which model_copy may have changed
        given |= own.pop("pipeline_kwargs", None) or {}
        skip_prompt = own.pop("skip_prompt", None)
        if skip_prompt:
            given["return_full_text"] = False
        return self._local.call({**given, **own}, stop), skip_prompt


def _reload(cls: type[HuggingFacePipeline], recipe: dict[str, Any], fields: dict[str, Any]) -> HuggingFacePipeline:
    return cls.from_model_id(**recipe).model_copy(update=fields)
