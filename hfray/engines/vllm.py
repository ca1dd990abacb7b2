"""vLLM's engine, on GPUs or with vLLM's CPU build, with the settings that vLLM's own `LLM` class would choose.

vLLM's core runs in a process of its own. This process initializes no CUDA: it would take GPU memory, and vLLM could not
fork its core.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vllm
from vllm.exceptions import VLLMClientError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext

from hfray.config.formats import format_name
from hfray.engines import vllm_process
from hfray.engines.base import Engine, Request, RequestError, StepOutput
from hfray.engines.ebnf import one_line_ebnf
from hfray.engines.precision import torch_dtype
from hfray.engines.torch import ALLOCATOR
from hfray.engines.torch.checkpoint import load_tokenizer
from hfray.engines.vllm_settings import check_quantized, engine_arguments
from hfray.engines.waiting import WaitingRequests
from hfray.grammars import closed
from hfray.models.folder import end_token_ids, stored_dtype, stored_end_token_ids
from hfray.response import ResponseFormat

# vLLM reads these variables.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

LIBRARY: Any = vllm  # where vLLM is not installed, pyright takes this file for the package `vllm`
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
BUFFERED_TOKENS = 10  # vLLM hands over the tokens of a request that may wait in portions of this size
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(slots=True)
class _Running:
    """A request in vLLM, with vLLM's id for it."""

    request: Request
    key: str
    generated: int = 0


class VLLMEngine(Engine):
    """Runs requests on vLLM's `LLMEngine`.

    Args:
        folder: the Hugging Face folder.
        capacity: sequences run at once; None: vLLM's choice for the device.
        kv_cache_gib: size of the KV cache; None: 4 on a CPU, and vLLM's choice on a GPU.
        precision: a value of `model.precision`. Quantized weights stay as the checkpoint's config.json says.
        gpu_share: the part that this engine gets of the GPU memory that vLLM would take by default.
        arguments: further `EngineArgs` of vLLM.

    Raises:
        ValueError: vLLM cannot run the model with these arguments.
    """

    def __init__(
        self,
        folder: Path,
        *,
        capacity: int | None = None,
        kv_cache_gib: float | None = None,
        precision: str = "auto",
        trust_remote_code: bool = False,
        gpu_share: float = 1.0,
        **arguments: Any,
    ) -> None:
        check_quantized(folder, precision)
        self.tokenizer = load_tokenizer(folder, trust_remote_code)
        on_cpu, memory = current_platform.is_cpu(), LIBRARY.EngineArgs.gpu_memory_utilization
        mine = engine_arguments(
            on_cpu=on_cpu, capacity=capacity, kv_cache_gib=kv_cache_gib, gpu_share=gpu_share, memory=memory
        )
        dtype = torch_dtype(precision, stored_dtype(folder), on_cpu=on_cpu, fast=_formats_of_platform())
        mine |= {"model": str(folder), "dtype": dtype, "trust_remote_code": trust_remote_code}
        os.environ[vllm_process.OWNER] = str(os.getpid())
        for name, value in ALLOCATOR.items():  # vLLM sets up its own, and several GPUs cannot share growing segments
            if os.environ.get(name) == value:
                del os.environ[name]
        try:
            engine_args = LIBRARY.EngineArgs(**(mine | arguments))
            self._vllm: Any = LIBRARY.LLMEngine.from_engine_args(engine_args, usage_context=UsageContext.LLM_CLASS)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"vLLM cannot run model.source={folder} with backend.options={arguments}: {error}"
            ) from error
        config = self._vllm.vllm_config
        self.precision = _precision(self._vllm)
        self.context_length, self.capacity = config.model_config.max_model_len, config.scheduler_config.max_num_seqs
        self.end_ids = end_token_ids(stored_end_token_ids(folder), self.tokenizer.hf.eos_token_id)
        self._waiting = WaitingRequests()
        self._running: dict[int, _Running] = {}

    def prepare(self, form: ResponseFormat) -> None:
        """vLLM compiles forms itself, off its steps; it refuses those that it cannot compile when they are added."""
        if form.after_thought:
            raise RequestError("response.after_reasoning=true: is not supported by backend=vllm; use transformers")

    def add(self, request: Request) -> None:
        if request.params.no_repeat_ngram_size:
            raise RequestError("generation.no_repeat_ngram_size is not supported by backend=vllm; use transformers")
        self._waiting.add(request)

    def step(self) -> list[StepOutput]:
        refused = []
        for request in self._waiting.take(self.capacity - len(self._running), self.ending):
            prompt = {"prompt_token_ids": request.prompt_ids}
            try:
                key = self._vllm.add_request(str(request.id), prompt, self._sampling(request))
                self._running[request.id] = _Running(request, key)
            except (VLLMClientError, ValueError) as error:
                refused.append(StepOutput(request.id, error=f"vLLM refuses this request: {error}"))
        self.num_running = len(self._running)
        outputs = [self._read(output) for output in self._vllm.step()] if self._running else []
        return refused + outputs

    def cancel(self, request_id: int) -> None:
        self._waiting.cancel(request_id)
        running = self._running.pop(request_id, None)
        if running is not None:
            self._vllm.abort_request([running.key], internal=True)

    @property
    def num_unfinished(self) -> int:
        return len(self._running) + len(self._waiting)

    def close(self) -> None:
        if self._vllm is not None:
            self._vllm.engine_core.shutdown()
        self._vllm = None

    def _read(self, given: Any) -> StepOutput:
        completion, running = given.outputs[0], self._running[int(given.request_id)]
        output = StepOutput(running.request.id, list(completion.token_ids))
        for token, likely in zip(output.token_ids, completion.logprobs or (), strict=False):
            ranked = sorted(likely.items(), key=lambda entry: entry[1].rank)
            top = [(other, entry.logprob) for other, entry in ranked[: running.request.params.logprobs]]
            output.logprobs.append((likely[token].logprob, top))
        running.generated += len(output.token_ids)
        if running.generated == len(output.token_ids):  # the first tokens
            self.prefix_tokens += given.num_cached_tokens or 0
        if given.finished:
            if completion.finish_reason == "stop" and output.token_ids and output.token_ids[-1] in self.end_ids:
                del output.token_ids[-1], output.logprobs[len(output.token_ids) :]
            output.finish_reason = completion.finish_reason
            if completion.finish_reason not in ("stop", "length"):
                output.error = f"vLLM ended this request: {completion.finish_reason}"
            self._waiting.observe(running.request, running.generated)
            del self._running[running.request.id]
        return output

    def _sampling(self, request: Request) -> SamplingParams:
        params = request.params
        given = {name: getattr(params, name) for name in (*(SAMPLING if params.sampling else ()), *PENALTIES)}
        given = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(
            **{"temperature": 1.0 if params.sampling else 0.0} | given,
            seed=request.seed if params.sampling else None,
            max_tokens=request.max_new_tokens,
            min_tokens=min(params.min_new_tokens, request.max_new_tokens),
            ignore_eos=params.ignore_eos and params.response is None,
            structured_outputs=None if params.response is None else _structured(params.response),
            stop_token_ids=[] if params.ignore_eos else sorted(self.end_ids),
            logprobs=params.logprobs,
            detokenize=False,  # the loop detokenizes for all engines
            output_kind=RequestOutputKind.DELTA,
            stream_interval=BUFFERED_TOKENS if request.may_wait else 1,
        )


def _structured(form: ResponseFormat) -> StructuredOutputsParams:
    if form.kind == "choice":
        return StructuredOutputsParams(choice=form.choices)
    if form.kind == "schema":  # vLLM's own conversion allows any white space, as GenAI's does (`hfray.engines.ebnf`)
        schema = closed(form.schema)
        ebnf = one_line_ebnf(schema)
        return StructuredOutputsParams(json=schema) if ebnf is None else StructuredOutputsParams(grammar=ebnf)
    return StructuredOutputsParams(**{form.kind: form.text})


def version() -> str:
    """vLLM's version."""
    return LIBRARY.__version__


def knows(architecture: str) -> bool:
    """Whether vLLM has an implementation of its own of this architecture."""
    return architecture in LIBRARY.ModelRegistry.get_supported_archs()


def runs_on(gpu: bool) -> bool:
    """Whether this build of vLLM runs on this machine's GPUs, or on its CPU."""
    return current_platform.is_cuda_alike() if gpu else current_platform.is_cpu()


def _formats_of_platform() -> list[str]:
    """The 16-bit formats of vLLM's platform, the preferred one first. Asking vLLM initializes no CUDA."""
    formats = [format_name(dtype) for dtype in current_platform.supported_dtypes]
    return [name for name in formats if name != "fp32"]


def _precision(engine: Any) -> str:
    """What the loaded model computes in, as `Engine.precision`."""
    config = engine.vllm_config
    computes, kept = format_name(config.model_config.dtype), config.cache_config.cache_dtype
    quantized = config.model_config.quantization
    if quantized is None and config.parallel_config.worker_extension_cls.startswith(vllm_process.__name__):
        computes = engine.collective_rpc("hfray_precision")[0]
    words = [computes] + ([f"weights {quantized}"] if quantized else [])
    return ", ".join(words if kept == "auto" or format_name(kept) == computes else [*words, f"KV cache {kept}"])
